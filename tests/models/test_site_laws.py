"""Laws 1 to 4, 14 and 16 at each site by itself and at all, for encoders that differ in every option; in float64."""

import pytest
import torch

# Float64 rounding, some hundred operations deep, on logits of order 10; a spike that flips would show as 1e-2 or more.
ROUNDING = {"rtol": 0.0, "atol": 1e-11}
GOOSE = {
    "mixer": "goose", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "norm": "rmsnorm",
    "mlp": "swiglu", "positions": "rotary", "rotary_frequencies": [1.0, 0.3, 0.05],
}  # fmt: skip
ENCODERS = {
    "recorded": {"surrogate": {"kind": "recorded_ste"}},
    "ternary": {"amplitude": "none", "scale": "token"},
    "levels-channel": {"levels": 4, "amplitude": "channel", "scale": "token", "learn_alpha": True, "alpha": 0.6},
    "binary-group": {
        "encoder": "binary",
        "levels": 2,
        "amplitude": "group",
        "group_channels": 5,
        "scale": "token",
        "store_alpha": True,
        "alpha": 0.5,
    },
    "triangle": {"levels": 2, "scale": "token", "surrogate": {"kind": "triangle", "width": 0.5}},
}
MEMBRANES = {
    "channel-thresholds": {
        "learn_alpha": True, "alpha_per": "channel", "amplitude": "channel", "amplitude_init": "jitter"
    },
    "running-means": {"channel_share": 0.35, "amplitude_range": [0.25, 4.0], "levels": 2, "alpha": 0.6},
    "membrane": {"levels": 2, "scale": "token", "membrane": {"beta": 0.9}},
    "membrane-detached-binary": {
        "encoder": "binary", "amplitude": "channel", "scale": "token", "learn_alpha": True, "alpha": 0.5,
        "membrane": {"beta": 0.6, "detach_reset": True},
    },
    "membrane-beside-none": {"membrane": {"sites": ["v", "mixer_out", "ffn_mid", "head_in"]}},
}  # fmt: skip
CASES = {
    **{
        f"goose-{site}": ("goose", [site])
        for site in ("mixer_in", "gate_mid", "mixer_out", "ffn_in", "ffn_mid", "head_in")
    },
    "goose-everywhere": ("goose", "all+head"),
    "wkv-everywhere": ("wkv", "all+head"),
}
# Membranes at each site by itself would tell no more than all of them together.
PAIRS = [
    *((case, encoder) for case in CASES for encoder in ENCODERS),
    *((case, encoder) for case in ("goose-everywhere", "wkv-everywhere") for encoder in MEMBRANES),
]


@pytest.fixture(params=PAIRS, ids="-".join)
def student(request, make_student):
    """A student that spikes at the case's sites, by the encoder of that name."""
    case, encoder = request.param
    mixer, sites = CASES[case]
    spikes = {"sites": sites, **(ENCODERS | MEMBRANES)[encoder]}
    return make_student(**(GOOSE if mixer == "goose" else {}), spikes=spikes)


def embeddings(seed=2):
    return torch.randn(2, 12, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_spikes(student, x):
    """Spikes of every site, [batch time width], by layer and site."""
    spikes = student(inputs_embeds=x, output_spikes=True).spikes
    return {(layer, site): values for layer, sites in enumerate(spikes) for site, values in sites.items()}


@torch.no_grad()
def test_step_form_equals_sequence_form(student, ids):
    cache, logits = None, []
    for column in ids.split(1, dim=1):
        output = student(column, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), student(ids).logits, **ROUNDING)


@torch.no_grad()
def test_a_sequence_cut_in_two_is_the_whole(student, ids):
    first = student(ids[:, :7], use_cache=True)
    second = student(ids[:, 7:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat((first.logits, second.logits), dim=1), student(ids).logits, **ROUNDING)


@torch.no_grad()
def test_left_padding_changes_no_logit_of_a_valid_token(student, ids):
    padded = torch.nn.functional.pad(ids, (4, 0))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (4, 0))
    torch.testing.assert_close(student(padded, attention_mask=mask).logits[:, 4:], student(ids).logits, **ROUNDING)


@torch.no_grad()
def test_no_statistic_crosses_time(student):
    x, changed = embeddings(), embeddings()
    changed[:, 6:] = 50.0 * embeddings(seed=3)[:, 6:]
    before, after = all_spikes(student, x), all_spikes(student, changed)
    assert all(torch.equal(values[:, :6], after[place][:, :6]) for place, values in before.items())
    assert any(not torch.equal(values[:, 6:], after[place][:, 6:]) for place, values in before.items())


@torch.no_grad()
def test_no_statistic_crosses_the_batch(student):
    x, changed = embeddings(), embeddings()
    changed[1] = 50.0 * embeddings(seed=3)[1]
    before, after = all_spikes(student, x), all_spikes(student, changed)
    assert all(torch.equal(values[0], after[place][0]) for place, values in before.items())
    alone = student(inputs_embeds=x[:1]).logits
    torch.testing.assert_close(alone, student(inputs_embeds=x).logits[:1], **ROUNDING)


def test_silent_tokens_stay_finite_forward_and_backward(student):
    silence = torch.zeros(2, 5, 24, dtype=torch.float64, requires_grad=True)
    logits = student(inputs_embeds=silence).logits
    logits.logsumexp(dim=-1).sum().backward()
    assert logits.isfinite().all()
    assert silence.grad.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in student.parameters() if weight.grad is not None)


@torch.no_grad()
def test_sites_that_are_asked_for_leave_integer_spikes(student, ids):
    found = student(ids, output_spikes=True).spikes
    levels = student.config.spikes["levels"]
    wanted = set(student.config.spikes["sites"])
    assert {site for sites in found for site in sites} == wanted
    assert len(found) == 3 + ("head_in" in wanted)
    for sites in found:
        for values in sites.values():
            assert torch.equal(values, values.round())
            assert values.abs().max() <= levels
            assert values.count_nonzero() > 0
            assert student.config.spikes["encoder"] == "ternary" or values.min() == 0


@torch.no_grad()
def test_the_head_makes_the_same_logits_of_spikes_as_of_what_they_stand_for(student, ids):
    """What a loss computes from the last hidden states is what the head computes from integers."""
    output = student(ids)
    expected = output.last_hidden_state @ student.lm_head.weight.T
    torch.testing.assert_close(output.logits, expected, **ROUNDING)
    torch.testing.assert_close(student(ids, logits_to_keep=3).logits, output.logits[:, -3:], **ROUNDING)


def test_every_encoder_parameter_gets_a_gradient(student, ids):
    student(ids).logits.logsumexp(dim=-1).sum().backward()
    for name, parameter in student.named_parameters():
        if "encoders." in name and parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
