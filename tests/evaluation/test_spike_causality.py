import math
from contextlib import ExitStack

import pytest
import torch

from asnn_goose.config_validation import ValidationOptions
from asnn_goose.evaluation.observe import encoders_by_place
from asnn_goose.evaluation.spike_causality import ALL_SITES, REPLACEMENTS, causal_use, replaced_spikes
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.student import GooseForCausalLM

# Float64 rounding, some hundred operations deep, on logits of order 10; a spike that flips would show as 1e-2 or more.
ROUNDING = {"rtol": 0.0, "atol": 1e-11}
SITES = ["k", "v", "mixer_in", "gate_mid", "mixer_out", "ffn_in", "ffn_mid", "head_in"]
GOOSE = {
    "mixer": "goose", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "norm": "rmsnorm",
    "mlp": "gelu", "mlp_bias": True, "positions": "rotary", "rotary_frequencies": [1.0, 0.3, 0.05],
}  # fmt: skip


def small(**spikes: object) -> GooseForCausalLM:
    """A student in float64, none of whose weights has the value it started with."""
    shape = {"vocab_size": 97, "hidden_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 48}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        config = GooseConfig(**shape, scan_backend="torch", **GOOSE, spikes=spikes)
        student = GooseForCausalLM(config).double().eval()
        for parameter in student.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return student


@pytest.fixture
def student():
    return small(sites="all+head", levels=2, scale="token", amplitude="channel")


@pytest.fixture
def ids():
    return torch.randint(1, 97, (5, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(student, ids, *replacements, **choices):
    """The student's logits with each replacement in force, given as site and name."""
    with ExitStack() as stack:
        for site, replacement in replacements:
            stack.enter_context(replaced_spikes(student, site, replacement, seed=0, **choices))
        return student(ids).logits


@torch.no_grad()
def spikes_at(student, ids, site, replacement, **choices):
    """A site's spikes in each block as layers are given them."""
    with replaced_spikes(student, site, replacement, **{"seed": 0, **choices}):
        return [found[site] for found in student(ids, output_spikes=True).spikes if site in found]


def mean_loss(student, ids):
    """Mean negative log-likelihood of all but the first token of each row, in float64."""
    with torch.no_grad():
        given = student(ids).logits[:, :-1].log_softmax(dim=-1)
    return -given.gather(2, ids[:, 1:, None]).mean().item()


def hooks_of(student):
    return [hook for module in student.modules() for hook in module._forward_hooks]


@pytest.mark.parametrize("site", SITES)
def test_zeroed_spikes_are_what_a_hook_that_returns_zeros_makes(student, ids, site):
    hooks = [
        encoder.register_forward_hook(lambda _, given, made: made._replace(values=torch.zeros_like(made.values)))
        for (_, name), encoder in encoders_by_place(student).items()
        if name == site
    ]
    expected = logits(student, ids)
    for hook in hooks:
        hook.remove()
    assert torch.equal(logits(student, ids, (site, "zeroed")), expected)
    assert not torch.equal(logits(student, ids), expected)


@pytest.mark.parametrize("site", SITES)
def test_zeroed_spikes_are_those_of_an_encoder_whose_threshold_nothing_reaches(ids, site):
    """Thresholds end at 10, which no activation here comes near."""
    student, silent = (small(sites="all+head", learn_alpha=True, amplitude="none") for _ in range(2))
    with torch.no_grad():
        for number, (place, encoder) in enumerate(encoders_by_place(silent).items()):
            student_encoder = encoders_by_place(student)[place]
            student_encoder.alpha.fill_(1.0 + 0.1 * number)
            encoder.alpha.fill_(1e9 if place[1] == site else 1.0 + 0.1 * number)
    quiet = all(not found.any() for found in spikes_at(silent, ids, site, "signs_flipped"))
    assert quiet
    torch.testing.assert_close(logits(student, ids, (site, "zeroed")), logits(silent, ids), **ROUNDING)


def test_preactivations_at_every_site_are_the_dense_twin(student, ids):
    twin = small(sites=[])
    twin.load_state_dict({name: w for name, w in student.state_dict().items() if "encoders" not in name})
    every = [(site, "preactivations") for site in SITES]
    torch.testing.assert_close(logits(student, ids, *every), logits(twin, ids), **ROUNDING)
    assert torch.equal(logits(student, ids, (ALL_SITES, "preactivations")), logits(student, ids, *every))
    assert not torch.allclose(logits(student, ids), logits(twin, ids), atol=1e-3)


@pytest.mark.parametrize("site", SITES)
def test_signs_flipped_twice_change_nothing(student, ids, site):
    flip = (site, "signs_flipped")
    assert torch.equal(logits(student, ids, flip, flip), logits(student, ids))
    assert not torch.allclose(logits(student, ids, flip), logits(student, ids), atol=1e-3)


def test_a_flipped_spike_goes_with_the_amplitude_of_its_new_sign(ids):
    student = small(sites=["k"], amplitude="asymmetric")
    encoder = encoders_by_place(student)[0, "k"]
    x = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad(), replaced_spikes(student, "k", "signs_flipped", seed=0):
        flipped = encoder(x)
        expected = flipped.values.relu() * encoder.amplitude[0] - (-flipped.values).relu() * encoder.amplitude[1]
        torch.testing.assert_close(flipped.dense(), expected, **ROUNDING)
        assert {-1.0, 1.0} <= set(flipped.values.flatten().tolist())


def test_shuffled_tokens_are_the_same_tokens_in_an_order_of_each_block_and_site(student, ids):
    plain = student(ids, output_spikes=True).spikes[0]
    for site in ("mixer_in", "k"):
        (first, _), original = spikes_at(student, ids, site, "time_shuffled"), plain[site]
        assert not torch.equal(first, original)
        for row, mixed in zip(original.tolist(), first.tolist(), strict=True):
            assert sorted(row) == sorted(mixed)
    with replaced_spikes(student, ALL_SITES, "time_shuffled", seed=0):
        places = torch.arange(20.0, dtype=torch.float64).view(1, 20, 1)
        orders = []
        for encoder in encoders_by_place(student).values():
            # Spikes that are zero but for one channel that counts tokens in its threshold's units.
            wide = torch.zeros(1, 20, encoder.width, dtype=torch.float64)
            wide[..., :1] = places % 3 - 1
            orders.append(tuple(encoder(wide).values[0, :, 0].tolist()))
    assert len(set(orders)) == len(orders)


def test_noise_keeps_how_often_each_channel_spikes_in_a_row(student, ids):
    (first, _), original = spikes_at(student, ids, "k", "rate_matched_noise"), student(ids, output_spikes=True).spikes
    assert torch.equal(first.sort(dim=1).values, original[0]["k"].sort(dim=1).values)
    assert not torch.equal(first, original[0]["k"])


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_a_rows_replacement_does_not_depend_on_its_batch(student, ids, replacement):
    together = logits(student, ids, ("ffn_in", replacement))
    alone = logits(student, ids[3:4], ("ffn_in", replacement), first_row=3)
    torch.testing.assert_close(alone, together[3:4], **ROUNDING)
    with replaced_spikes(student, "ffn_in", replacement, seed=0), torch.no_grad():
        parts = [student(part).logits for part in ids.split(2)]
    torch.testing.assert_close(torch.cat(parts), together, **ROUNDING)


def test_one_block_is_replaced_where_one_is_asked_for(student, ids):
    replaced = spikes_at(student, ids, "mixer_in", "zeroed", block=1)
    original = student(ids, output_spikes=True).spikes
    assert torch.equal(replaced[0], original[0]["mixer_in"])
    assert original[1]["mixer_in"].any()
    assert not replaced[1].any()


def test_perplexities_are_those_of_the_students_own_logits(student, ids):
    found = causal_use(student, ids, ValidationOptions(rows_per_batch=2))
    assert [(entry.site, entry.replacement) for entry in found.replaced] == [
        (site, replacement) for site in encoders_order(student) for replacement in REPLACEMENTS
    ]
    assert found.tokens == ids.numel()
    plain = mean_loss(student, ids)
    assert found.perplexity == pytest.approx(math.exp(plain), rel=1e-9)
    for entry in found.replaced:
        with replaced_spikes(student, entry.site, entry.replacement, seed=0):
            loss = mean_loss(student, ids)
        assert entry.perplexity == pytest.approx(math.exp(loss), rel=1e-9)
        assert entry.ratio == pytest.approx(math.exp(loss - plain), rel=1e-9)


@pytest.mark.parametrize("threads", [2, 3])
def test_several_at_once_measure_what_one_after_another_does(student, ids, threads):
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            found.append(causal_use(student, ids, ValidationOptions(), ["k", "ffn_mid"]))
    finally:
        torch.set_num_threads(before)
    losses = [[entry.loss_nats for entry in use.replaced] for use in found]
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert not hooks_of(student)


def encoders_order(student):
    return list(dict.fromkeys(site for _, site in encoders_by_place(student)))


def test_figures_do_not_depend_on_batches_and_follow_from_the_seed(student, ids):
    few, many = (causal_use(student, ids, ValidationOptions(rows_per_batch=count), ["k"]) for count in (1, 4))
    other = causal_use(student, ids, ValidationOptions(seed=1), ["k"])
    assert [entry.loss_nats for entry in few.replaced] == pytest.approx([e.loss_nats for e in many.replaced], rel=1e-12)
    changed = [one.loss_nats != two.loss_nats for one, two in zip(few.replaced, other.replaced, strict=True)]
    drawn = [name in ("time_shuffled", "rate_matched_noise") for name in REPLACEMENTS]
    assert [a or b for a, b in zip(changed, drawn, strict=True)] == changed


def test_only_the_leading_tokens_are_looked_at(student):
    ids = torch.randint(1, 97, (20, 20), generator=torch.Generator().manual_seed(1))
    found = causal_use(student, ids, ValidationOptions(causal_tokens=256), ["k"])
    assert found.tokens == 240
    assert found.perplexity == pytest.approx(math.exp(mean_loss(student, ids[:12])), rel=1e-9)


def test_what_is_not_finite_is_none_and_keeps_its_loss(ids):
    student = small(sites=["k"])
    with torch.no_grad():
        student.lm_head.weight.mul_(1e4)
    found = causal_use(student, ids, ValidationOptions(), ["k"])
    assert found.perplexity is None
    assert found.loss_nats > 1000
    assert all(entry.perplexity is None and entry.loss_nats > 1000 for entry in found.replaced)
    with torch.no_grad():
        student.lm_head.weight.fill_(math.nan)
    entry = causal_use(student, ids, ValidationOptions(), ["k"]).replaced[0]
    assert (entry.perplexity, entry.ratio) == (None, None)


def test_a_dense_twin_has_nothing_to_replace(ids):
    found = causal_use(small(sites=[]), ids, ValidationOptions())
    assert found.replaced == ()
    assert found.perplexity is not None


@pytest.mark.parametrize(
    ("site", "replacement", "block", "message"),
    [
        ("k", "louder", None, "got 'louder'"),
        ("sites", "zeroed", None, "this student encodes k, v, mixer_in"),
        ("head_in", "zeroed", 0, "'head_in' of block 0"),
    ],
)
def test_what_is_not_there_is_refused(student, site, replacement, block, message):
    context = replaced_spikes(student, site, replacement, seed=0, block=block)
    with pytest.raises(ValueError, match=message):
        context.__enter__()


def test_no_hook_stays_and_the_mode_is_kept_after_an_error(student, ids):
    student.train()
    with pytest.raises(IndexError):
        causal_use(student, ids + 97, ValidationOptions())
    with pytest.raises(IndexError), replaced_spikes(student, ALL_SITES, "zeroed", seed=0):
        student(ids + 97)
    assert student.training
    assert not hooks_of(student)
