import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from asnn_goose.errors import ModelError
from asnn_goose.inference.cached_llama import CachedLlama

VOCABULARY, ROWS, TIME, POSITIONS = 101, 3, 12, 32
# float32 sums of 48 terms in another order than transformers', through three layers.
TOLERANCE = 1e-5


def build(**choices):
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Larger weights than the default, so that attention is far from uniform.
        return LlamaForCausalLM(LlamaConfig(**shape | {"initializer_range": 0.15} | choices)).eval()


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, VOCABULARY, (ROWS, TIME), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def whole_logits(model, tokens):
    """Logits of transformers' own forward pass at each position, without a cache."""
    return model(input_ids=tokens, use_cache=False).logits


def stepped_logits(model, tokens, prompt, first):
    """Logits from `prompt` tokens at once and the others one by one, after each of these calls."""
    llama = CachedLlama(model, rows=len(tokens) + 1, positions=POSITIONS)
    logits = [llama.next_logits(tokens[:, :prompt], torch.arange(prompt), first, length=16)]
    for place in range(prompt, tokens.shape[1]):
        logits.append(llama.next_logits(tokens[:, place : place + 1], torch.tensor([place]), first, length=16))
    return torch.stack(logits, dim=1)


def test_the_models_compared_attend_unevenly(model, tokens):
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % VOCABULARY
    assert (whole_logits(model, tokens)[:, -1] - whole_logits(model, changed)[:, -1]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1, "tie_word_embeddings": True},
        {"head_dim": 16},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    ],
    ids=["grouped", "one-each", "one-for-all-tied", "wide-heads", "linear-rotary"],
)
def test_steps_give_the_logits_of_the_whole_text(choices, tokens):
    model = build(**choices)
    stepped = stepped_logits(model, tokens, prompt=5, first=torch.zeros(ROWS, dtype=torch.long))
    assert torch.allclose(stepped, whole_logits(model, tokens)[:, 4:], atol=TOLERANCE, rtol=0)


def test_a_text_padded_on_the_left_has_the_logits_it_has_alone(model, tokens):
    first = torch.tensor([0, 3, 4])
    stepped = stepped_logits(model, tokens, prompt=5, first=first)
    for row, padding in enumerate(first.tolist()):
        alone = whole_logits(model, tokens[row : row + 1, padding:])[0, 4 - padding :]
        assert torch.allclose(stepped[row], alone, atol=TOLERANCE, rtol=0)


def test_what_padding_holds_has_no_part_in_the_logits(model, tokens):
    first = torch.full((ROWS,), 3)
    other = tokens.clone()
    other[:, :3] = 7
    assert torch.equal(stepped_logits(model, tokens, 5, first), stepped_logits(model, other, 5, first))


def test_rows_that_are_taken_go_on_where_they_were(model, tokens):
    llama = CachedLlama(model, rows=ROWS, positions=POSITIONS)
    first = torch.tensor([0, 2, 1])
    llama.next_logits(tokens[:, :-1], torch.arange(TIME - 1), first, length=16)
    chosen = torch.tensor([2, 0])
    llama.take_rows(chosen, length=16)
    logits = llama.next_logits(tokens[chosen, -1:], torch.tensor([TIME - 1]), first[chosen], length=16)
    expected = stepped_logits(model, tokens, TIME - 1, first)[chosen, -1]
    assert torch.allclose(logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("choices", [{"attention_bias": True}, {"mlp_bias": True}, {"hidden_act": "gelu"}])
def test_a_llama_of_another_form_is_refused(choices):
    with pytest.raises(ModelError, match=f"{next(iter(choices))}={next(iter(choices.values()))}.*supported are"):
        CachedLlama(build(**choices), rows=1, positions=8)


def test_a_rotary_embedding_that_depends_on_the_length_is_refused():
    model = build(rope_parameters={"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0})
    with pytest.raises(ModelError, match="rope_type=dynamic"):
        CachedLlama(model, rows=1, positions=8)


def test_another_family_is_refused_with_the_supported_ones():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ModelError, match="model_type=gpt2; supported are models with model_type=llama"):
        CachedLlama(model, rows=1, positions=8)


def test_more_positions_than_the_model_has_are_refused(model):
    with pytest.raises(ModelError, match="65 positions are asked for and the model has 64"):
        CachedLlama(model, rows=1, positions=65)
