import numpy as np
import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from asnn_goose.inference.continuations import batch_writer, has_sampler, join_texts
from asnn_goose.inference.sampling import Nucleus, sample_continuations

VOCABULARY, ROWS, LENGTH, END = 61, 6, 20, 0
LIKELIEST = Nucleus(candidates=1)
WIDE = Nucleus(temperature=1.0, top_p=1.0, candidates=VOCABULARY)


@pytest.fixture(scope="module")
def models():
    """A Llama and a GPT-2 with random weights."""
    llama = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    gpt2 = GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=24, n_layer=1, n_head=2, initializer_range=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {"llama": LlamaForCausalLM(llama).eval(), "gpt2": GPT2LMHeadModel(gpt2).eval()}


@pytest.fixture(scope="module")
def prompts():
    return torch.randint(1, VOCABULARY, (ROWS, 3), generator=torch.Generator().manual_seed(1))


def test_the_sampler_takes_llamas_and_generate_the_others(models):
    assert (has_sampler(models["llama"]), has_sampler(models["gpt2"])) == (True, False)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_likeliest_continuation_is_the_models_own(models, prompts, name):
    model = models[name]
    # An id beyond the vocabulary: no text ends.
    written = batch_writer(model, ROWS, LENGTH, LIKELIEST, VOCABULARY)(prompts, 7)
    texts = torch.cat((prompts, written), dim=1)
    with torch.no_grad():
        expected = model(texts).logits.argmax(dim=-1)[:, 2:-1]
    assert texts.shape == (ROWS, LENGTH)
    assert torch.equal(written, expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_seed_decides_the_texts_and_nothing_else_does(models, prompts, name):
    write = batch_writer(models[name], ROWS, LENGTH, WIDE, END)
    before = torch.random.get_rng_state()
    first, other, again = (write(prompts, seed) for seed in (4, 5, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_llamas_are_continued_by_the_sampler(models, prompts):
    written = batch_writer(models["llama"], ROWS, LENGTH, WIDE, END)(prompts, 4)
    mask, generator = torch.ones_like(prompts), torch.Generator().manual_seed(4)
    assert torch.equal(written, sample_continuations(models["llama"], prompts, mask, LENGTH - 3, WIDE, END, generator))


def test_generate_draws_what_the_models_distribution_says(models, prompts):
    model = models["gpt2"]
    many = prompts[:1].expand(4000, -1)
    drawn = batch_writer(model, 4000, 4, WIDE, VOCABULARY)(many, 0)[:, 0]
    with torch.no_grad():
        expected = model(prompts[:1]).logits[0, -1].softmax(dim=-1)
    # Five standard deviations of a share of 4,000 draws.
    assert torch.allclose(drawn.bincount(minlength=VOCABULARY) / 4000, expected, atol=5 * 0.5 / 63, rtol=0)


def test_a_models_own_way_to_generate_has_no_part_and_is_given_back(models, prompts):
    model = models["gpt2"]
    expected = batch_writer(model, ROWS, LENGTH, WIDE, END)(prompts, 4)
    own = model.generation_config
    model.generation_config = odd = GenerationConfig(repetition_penalty=5.0, max_length=7, top_k=1)
    try:
        assert torch.equal(batch_writer(model, ROWS, LENGTH, WIDE, END)(prompts, 4), expected)
        assert model.generation_config is odd
    finally:
        model.generation_config = own


def test_texts_are_joined_without_what_lies_behind_their_end():
    prompts = np.array([[5, END], [6, 7], [8, 9]])
    continuations = np.array([[1, END, END], [END, END, END], [1, 2, 3]])
    assert join_texts(prompts, continuations, END).tolist() == [5, END, 1, END, 6, 7, END, 8, 9, 1, 2, 3]
