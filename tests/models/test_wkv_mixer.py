import math

import pytest
import torch

from asnn_goose.models.mixers import MixerMemory
from asnn_goose.models.wkv_mixer import WkvMixer
from asnn_goose.spikes.encoder import SpikeEncoder

# Float64 rounding of sums of some dozen terms of order 1.
ROUNDING = {"rtol": 0.0, "atol": 1e-12}
# Starting values are stored in float32; a timescale of 1000 tokens is a decay of 0.999, whose logit rounds to 4e-7.
FLOAT32_LOGIT = 1e-5


def mixer(width=8, layer=1, layers=3, **choices):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WkvMixer(width, layer, layers, choices.pop("encoders", {}), backend="torch", **choices).double()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def influence_of_the_first_token(time, **choices):
    """How far the last state moves, in units of the first step's k * v, when that k * v grows."""
    dense = mixer(**choices)
    key, value = noise(1, time, 8).requires_grad_(), torch.ones(1, time, 8, dtype=torch.float64)
    state = torch.zeros(1, 8, dtype=torch.float64)
    return torch.autograd.grad(dense._scan(key, value, state, None)[1].sum(), key)[0][0]


def test_spread_decay_covers_timescales_of_1_to_1000_tokens():
    timescales = -1.0 / torch.log(torch.sigmoid(mixer(width=31, decay_init="spread").decay_logit))
    by_hand = [1000.0 ** (channel / 30) for channel in range(31)]
    assert timescales.tolist() == pytest.approx(by_hand, rel=FLOAT32_LOGIT)


def test_recorded_decay_is_the_sigmoid_of_minus_a_half_everywhere():
    assert mixer(decay_init="recorded").decay_logit.tolist() == [-0.5] * 8


@pytest.mark.parametrize(("layer", "share"), [(0, 1.0), (1, 0.75), (4, 0.0)])
def test_recorded_mix_falls_linearly_with_depth(layer, share):
    recorded = mixer(layer=layer, layers=5, mix_init="recorded")
    for mix in (recorded.mix_key, recorded.mix_value, recorded.mix_receptance):
        assert mix.tolist() == [share] * 8


def test_recorded_mix_of_a_single_layer_is_finite():
    assert mixer(layer=0, layers=1, mix_init="recorded").mix_key.tolist() == [1.0] * 8


def test_spread_mix_is_a_power_of_the_channel():
    spread = mixer(layer=1, layers=4, mix_init="spread")
    by_hand = [(channel / 8) ** 0.75 for channel in range(8)]
    assert spread.mix_key.tolist() == pytest.approx(by_hand, rel=FLOAT32_LOGIT)
    assert spread.mix_receptance.tolist() == pytest.approx([math.sqrt(share) for share in by_hand], rel=FLOAT32_LOGIT)


def test_projections_start_with_a_deviation_of_a_tenth_over_the_square_root_of_the_width():
    wide = mixer(width=256)
    for projection in (wide.key, wide.value, wide.receptance, wide.output):
        # 65,536 draws give the deviation to 0.3 %.
        assert projection.weight.std().item() == pytest.approx(0.1 / 16, rel=0.02)


def test_dense_mixer_is_the_recurrence_written_as_a_loop():
    dense, x = mixer(), noise(2, 6, 8)
    state = previous = torch.zeros(2, 8, dtype=torch.float64)
    expected = []
    for token in x.unbind(1):
        mixed = [share * token + (1 - share) * previous for share in (dense.mix_key, dense.mix_value)]
        state = torch.sigmoid(dense.decay_logit) * state + dense.key(mixed[0]) * dense.value(mixed[1])
        receptance = dense.receptance(dense.mix_receptance * token + (1 - dense.mix_receptance) * previous)
        expected.append(torch.sigmoid(receptance) * dense.output(state))
        previous = token
    torch.testing.assert_close(dense(x).residual, torch.stack(expected, dim=1), **ROUNDING)


def test_memory_is_the_state_and_the_last_token():
    dense, x = mixer(), noise(2, 6, 8)
    memory = dense(x).memory
    key_value = [dense.key(x[:, 0] * dense.mix_key) * dense.value(x[:, 0] * dense.mix_value)]
    torch.testing.assert_close(dense(x[:, :1]).memory.state, key_value[0], **ROUNDING)
    assert torch.equal(memory.shift, x[:, -1])


def test_a_mixer_reads_its_key_and_value_as_spikes():
    encoders = {site: SpikeEncoder(8, levels=2, amplitude="none").double() for site in ("k", "v")}
    spiking, x = mixer(encoders=encoders), noise(1, 1, 8)
    output = spiking(x)
    assert torch.equal(output.memory.state, output.traces["k"].values[:, 0] * output.traces["v"].values[:, 0])
    assert set(output.traces["k"].values.unique().tolist()) <= {-2.0, -1.0, 0.0, 1.0, 2.0}


def test_exact_recurrence_with_spread_decay_remembers_sixty_tokens_back():
    timescales = torch.logspace(0, 3, 8, dtype=torch.float64)
    influence = influence_of_the_first_token(61, decay_init="spread")[0]
    torch.testing.assert_close(influence, torch.exp(-60.0 / timescales), rtol=1e-4, atol=1e-12)
    assert influence[-1] > 0.9


def test_recorded_recurrence_at_its_decay_forgets_sixty_tokens_back():
    forgetful = influence_of_the_first_token(61, recurrence="recorded", decay_init="recorded")[0]
    assert forgetful.max() < 1e-20


def test_recorded_recurrence_loses_even_what_it_has_just_read():
    # Its weight of the last step is d^t / (d^t + 1e-8), where the exact recurrence has 1.
    power = (1.0 / (1.0 + math.exp(0.5))) ** 60
    recorded = influence_of_the_first_token(61, recurrence="recorded", decay_init="recorded")[-1]
    exact = influence_of_the_first_token(61, recurrence="exact", decay_init="recorded")[-1]
    assert recorded.tolist() == pytest.approx([power / (power + 1e-8)] * 8, rel=FLOAT32_LOGIT)
    assert exact.tolist() == [1.0] * 8


@pytest.mark.parametrize("recurrence", ["exact", "recorded"])
def test_padded_steps_leave_state_and_shift_untouched(recurrence):
    dense, memory = mixer(recurrence=recurrence), MixerMemory(noise(2, 8, seed=1), noise(2, 8, seed=2))
    valid = torch.tensor([[False, False, True, True, False], [False] * 5])
    padded, alone = dense(noise(2, 5, 8), memory, valid).memory, dense(noise(2, 5, 8)[:, 2:4], memory).memory
    torch.testing.assert_close(padded.state[0], alone.state[0], **ROUNDING)
    assert torch.equal(padded.shift[0], noise(2, 5, 8)[0, 3])
    assert torch.equal(padded.state[1], memory.state[1])
    assert torch.equal(padded.shift[1], memory.shift[1])


def test_memory_before_the_first_token_is_zero_and_at_least_float32():
    memory = mixer().initial_memory(torch.ones(3, 5, 8, dtype=torch.bfloat16))
    assert memory.state.dtype == torch.float32
    assert memory.shift.dtype == torch.bfloat16
    assert memory.state.shape == (3, 8)
    assert memory.state.count_nonzero() == memory.shift.count_nonzero() == 0
