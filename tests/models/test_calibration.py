import pytest
import torch

from asnn_goose.models.calibration import (
    TIMESCALES,
    calibrate_encoders,
    calibrate_mixer,
    calibrate_outputs,
    calibrated_encoders,
    dense_encoders,
    limit_events,
)
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.goose_mixer import LEAST_LOG_DECAY, GooseMixer, GooseShape
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.sublayers import BlockRecord, SublayerRecord
from asnn_goose.spikes.calibrate import GRID
from asnn_goose.spikes.encoder import SpikeEncoder

SHAPE = GooseShape(width=16, heads=4, key_value_heads=2, head_width=4, bias=True, output_bias=True)


@pytest.fixture
def record():
    """What a mixer with known rates and gains does, in the place of an attention."""
    torch.manual_seed(0)
    source = GooseMixer(SHAPE, {})
    timescales = (TIMESCALES[2], TIMESCALES[6])
    with torch.no_grad():
        source.rates.bias[:2] = torch.tensor([1 / (t * -LEAST_LOG_DECAY) for t in timescales]).logit()
        source.rates.bias[2:4] = torch.tensor([0.02, 0.7]).logit()
        source.head_norm.copy_(torch.linspace(0.5, 3.0, 16))
        given = torch.randn(8, 64, 16)
        found = source.read(given) * source.head_norm
        return source, timescales, SublayerRecord(given, source.output(found), found)


def fresh(source):
    mixer = GooseMixer(SHAPE, {})
    names = ("receptance", "key", "value", "output")
    mixer.load_state_dict({k: v for k, v in source.state_dict().items() if k.split(".")[0] in names}, strict=False)
    return mixer


def test_rates_and_gains_that_made_the_target_are_found_again(record):
    source, timescales, seen = record
    mixer = fresh(source)
    calibrate_mixer(mixer, seen.stream, seen)
    found = 1 / (torch.sigmoid(mixer.rates.bias[:2]) * -LEAST_LOG_DECAY)
    torch.testing.assert_close(found, torch.tensor(timescales), rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.sigmoid(mixer.rates.bias[2:4]), torch.tensor([0.02, 0.7]), rtol=1e-4, atol=0)
    torch.testing.assert_close(mixer.head_norm, source.head_norm, rtol=1e-3, atol=1e-3)


def test_the_fitted_output_is_nearer_to_the_target_than_the_copied_one(record):
    source, _, seen = record
    target = torch.tanh(seen.output * 2)
    seen = SublayerRecord(seen.stream, target, seen.found)
    mixer = fresh(source)
    calibrate_mixer(mixer, seen.stream, seen)
    copied = fresh(source)
    copied.load_state_dict({**mixer.state_dict(), "output.weight": source.output.weight}, strict=True)
    errors = [(part(seen.stream).residual - target).square().mean() for part in (mixer, copied)]
    assert errors[0] < errors[1]


def test_an_attention_that_finds_nothing_leaves_finite_weights(record):
    source, _, seen = record
    mixer = fresh(source)
    nothing = SublayerRecord(seen.stream, torch.zeros_like(seen.output), torch.zeros_like(seen.found))
    calibrate_mixer(mixer, nothing.stream, nothing)
    assert all(torch.isfinite(parameter).all() for parameter in mixer.parameters())


def test_an_encoded_output_projection_is_fitted_to_the_spikes_that_it_reads(record):
    source, _, seen = record
    mixer = fresh(source)
    mixer.encoders["mixer_out"] = SpikeEncoder(16, levels=1, amplitude="none", scale="token")
    calibrate_mixer(mixer, seen.stream, seen)
    blind = fresh(source)
    calibrate_mixer(blind, seen.stream, seen)
    blind.encoders["mixer_out"] = mixer.encoders["mixer_out"]
    errors = [(part(seen.stream).residual - seen.output).square().mean() for part in (mixer, blind)]
    assert errors[0] < errors[1]


def test_an_output_that_is_fitted_anew_leaves_all_else_and_follows_what_it_reads(record):
    source, _, seen = record
    mixer = fresh(source)
    calibrate_mixer(mixer, seen.stream, seen)
    mixer.encoders["mixer_out"] = SpikeEncoder(16, levels=1, amplitude="none", scale="token")
    before = {name: weight.clone() for name, weight in mixer.state_dict().items()}
    stale = (mixer(seen.stream).residual - seen.output).square().mean()
    calibrate_outputs(student_of(mixer), [BlockRecord(seen)])
    assert (mixer(seen.stream).residual - seen.output).square().mean() < stale
    changed = {name for name, weight in mixer.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {"output.weight"}


def student_of(mixer):
    """A student whose only mixer this is."""
    config = GooseConfig(
        mixer="goose", vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, gate_rank=0,
    )  # fmt: skip
    student = GooseForCausalLM(config)
    student.model.layers[0].mixer, student.model.layers[0].mixer_norm = mixer, torch.nn.Identity()
    return student


EVERYWHERE = {"sites": "all+head", "levels": 2, "scale": "token", "amplitude": "none", "store_alpha": True}
GOOSE = {"mixer": "goose", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "mlp": "swiglu"}


def test_thresholds_are_those_of_least_error_on_the_dense_students_activations(make_student, ids):
    student = make_student(**GOOSE, spikes=EVERYWHERE)
    dense = make_student(**GOOSE, spikes={"sites": []})
    dense.load_state_dict(student.state_dict(), strict=False)
    given = []
    dense.model.layers[1].feed_forward.down.register_forward_pre_hook(lambda module, x: given.append(x[0]))
    with torch.no_grad():
        dense(ids)
    calibrate_encoders(student, ids)
    encoder = student.model.layers[1].feed_forward.encoders["ffn_mid"]
    errors = [(SpikeEncoder(96, 2, alpha, amplitude="none", scale="token")(given[0]).dense() - given[0]).square().sum()
              for alpha in GRID]  # fmt: skip
    assert float(encoder.alpha) == pytest.approx(GRID[int(torch.stack(errors).argmin())])


def test_every_threshold_is_calibrated(make_student, ids):
    student = make_student(**GOOSE, spikes=EVERYWHERE)
    chosen = calibrated_encoders(student)
    assert len(chosen) == 3 * 7 + 1
    calibrate_encoders(student, ids)
    assert all(min((abs(float(part.alpha) - alpha) / alpha) for alpha in GRID) < 1e-6 for part in chosen)
    again = [float(part.alpha) for part in chosen]
    calibrate_encoders(student, ids)
    assert [float(part.alpha) for part in chosen] == again


def test_limits_raise_thresholds_to_so_many_events_and_leave_higher_ones(make_student, ids):
    student = make_student(**GOOSE, spikes=EVERYWHERE)
    chosen = calibrated_encoders(student)
    calibrate_encoders(student, ids)
    before = [float(part.alpha) for part in chosen]
    limit_events(student, ids, dict.fromkeys(chosen[:-1], 0.2) | {chosen[-1]: 1.9})
    after = [float(part.alpha) for part in chosen]
    assert after[-1] == before[-1]
    seen = {}
    with torch.no_grad(), dense_encoders(student, lambda part, x: seen.__setitem__(part, x)):
        student(ids)
    for part, old, new in zip(chosen[:-1], before, after, strict=False):
        events = float(part(seen[part]).values.abs().mean())
        assert events <= 0.2
        assert events > 0.1 or new == old
    assert sum(new > old for old, new in zip(before, after, strict=True)) > len(chosen) // 2


@torch.no_grad()
def test_within_the_block_the_student_is_dense(make_student, ids):
    student = make_student(**GOOSE, spikes=EVERYWHERE)
    dense = make_student(**GOOSE, spikes={"sites": []})
    dense.load_state_dict(student.state_dict(), strict=False)
    spiking = student(ids).logits
    with dense_encoders(student):
        assert torch.equal(student(ids).logits, dense(ids).logits)
    assert torch.equal(student(ids).logits, spiking)


def test_unit_spikes_as_recorded_have_nothing_to_calibrate(make_student):
    assert calibrated_encoders(make_student(**GOOSE)) == []
