import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from asnn_goose.errors import ModelError
from asnn_goose.inference.sampling import ContinuationSampler, Nucleus, draw_tokens, sample_continuations

VOCABULARY, ROWS, WIDTH, NEW = 61, 16, 9, 150
LIKELIEST = Nucleus(candidates=1)
NO_END = VOCABULARY  # an id that no token has, so that no text ends


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def prompts():
    """Token ids and attention mask of prompts of 2 to WIDTH tokens."""
    ids = torch.randint(1, VOCABULARY, (ROWS, WIDTH), generator=torch.Generator().manual_seed(1))
    lengths = torch.arange(ROWS) % (WIDTH - 1) + 2
    mask = (torch.arange(WIDTH) >= WIDTH - lengths[:, None]).long()
    return ids * mask, mask


def sample(model, prompts, nucleus=LIKELIEST, eos=NO_END, seed=0, new_tokens=NEW):
    return sample_continuations(model, *prompts, new_tokens, nucleus, eos, torch.Generator().manual_seed(seed))


@torch.no_grad()
def generated(model, prompts, eos=None):
    """What transformers' own greedy generation adds."""
    ids, mask = prompts
    options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": eos, "pad_token_id": eos or 0}
    return model.generate(ids, attention_mask=mask, **options)[:, WIDTH:]


def test_the_likeliest_tokens_are_those_of_generate(model, prompts):
    assert torch.equal(sample(model, prompts), generated(model, prompts))


def test_a_tiny_nucleus_holds_the_likeliest_token_alone(model, prompts):
    nucleus = Nucleus(temperature=1.0, top_p=1e-9, candidates=VOCABULARY)
    assert torch.equal(sample(model, prompts, nucleus), sample(model, prompts))


def test_rows_that_end_leave_and_the_others_go_on_as_before(model, prompts):
    free = generated(model, prompts)
    # The token that ends most texts, but not all, and not at once.
    ends = [(free == token).any(dim=1).sum().item() for token in range(VOCABULARY)]
    eos = max((count, token) for token, count in enumerate(ends) if count < ROWS)[1]
    expected = free.clone()
    ended = (free == eos).long().cumsum(dim=1) > 0
    expected[ended] = eos
    assert ended.any(dim=1).sum() > ROWS // 8
    assert torch.equal(sample(model, prompts, eos=eos), expected)


def test_a_batch_whose_texts_all_end_is_filled_with_the_end(model, prompts):
    prompts = (prompts[0][:1].expand(4, -1), prompts[1][:1].expand(4, -1))
    eos = int(generated(model, prompts)[0, 0])
    assert torch.equal(sample(model, prompts, eos=eos), torch.full((4, NEW), eos))


def test_the_same_seed_gives_the_same_tokens_and_another_others(model, prompts):
    nucleus = Nucleus(temperature=1.0)
    first, same, other = (sample(model, prompts, nucleus, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_sampler_that_is_used_again_remembers_nothing(model, prompts):
    sampler = ContinuationSampler(model, ROWS, WIDTH + NEW, LIKELIEST, NO_END)
    sampler.sample(prompts[0].flip(0), prompts[1].flip(0), NEW, torch.Generator().manual_seed(0))
    few = (prompts[0][:5], prompts[1][:5])
    again = sampler.sample(*few, 40, torch.Generator().manual_seed(0))
    assert torch.equal(again, sample(model, few, new_tokens=40))


def test_only_tokens_of_the_nucleus_are_drawn_with_their_shares():
    # 0.5 + 0.25 < 0.8 <= 0.5 + 0.25 + 0.125: three tokens, in a row's own order.
    shares = torch.tensor([0.0625, 0.25, 0.5, 0.0625, 0.125])
    noise = torch.empty(40_000, 5).exponential_(generator=torch.Generator().manual_seed(0))
    drawn = draw_tokens(shares.log().expand(len(noise), -1), noise, temperature=1.0, top_p=0.8)
    expected = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.125]) / 0.875
    # Five standard deviations of a share of 40,000 draws.
    assert torch.allclose(drawn.bincount(minlength=5) / len(noise), expected, atol=5 * 0.5 / 200, rtol=0)
    assert set(drawn.tolist()) == {1, 2, 4}


def test_the_temperature_divides_the_logits():
    logits = torch.tensor([0.0, 1.0]).expand(40_000, -1)
    noise = torch.empty(40_000, 2).exponential_(generator=torch.Generator().manual_seed(0))
    drawn = draw_tokens(logits, noise, temperature=0.5, top_p=1.0)
    expected = torch.tensor(2.0).sigmoid()
    assert torch.allclose(drawn.float().mean(), expected, atol=5 * 0.5 / 200, rtol=0)


@pytest.mark.parametrize("choices", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"candidates": 0}], ids=str)
def test_a_nucleus_that_holds_nothing_is_refused(choices):
    with pytest.raises(ModelError, match="candidates=1"):
        Nucleus(**choices)


def test_a_batch_that_does_not_fit_is_refused(model, prompts):
    sampler = ContinuationSampler(model, ROWS, WIDTH + 4, LIKELIEST, NO_END)
    with pytest.raises(ModelError, match="make it larger"):
        sampler.sample(*prompts, 5, torch.Generator())


def test_padding_on_the_right_is_refused(model, prompts):
    with pytest.raises(ModelError, match="padded on the left"):
        sample(model, (prompts[0], prompts[1].flip(1)))


@pytest.mark.gpu
def test_captured_steps_give_what_plain_steps_give(model, prompts):
    on_gpu = LlamaForCausalLM(model.config).cuda().eval()
    on_gpu.load_state_dict(model.state_dict())
    plain, captured = (ContinuationSampler(on_gpu, ROWS, WIDTH + NEW, Nucleus(), NO_END) for _ in range(2))
    plain._pool = None
    ids, mask = (tensor.cuda() for tensor in prompts)
    # The second time every step of the captured one is a replay.
    for seed in (1, 2):
        generators = [torch.Generator("cuda").manual_seed(seed) for _ in range(2)]
        expected = plain.sample(ids, mask, NEW, generators[0])
        assert torch.equal(captured.sample(ids, mask, NEW, generators[1]), expected)
