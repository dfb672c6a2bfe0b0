import pytest
import torch

from asnn_goose.spikes.encoder import SpikeEncoder
from asnn_goose.spikes.penalties import amplitude_variance, excess_activity, threshold_collapse


def encoder(amplitudes, **choices):
    made = SpikeEncoder(len(amplitudes), amplitude="channel", **choices).double()
    made.amplitude.data.copy_(torch.tensor(amplitudes))
    return made


def test_amplitude_variance_is_averaged_over_the_encoders_that_have_amplitudes():
    parts = [encoder([1.0, 3.0]), encoder([2.0, 2.0]), SpikeEncoder(2, amplitude="none")]
    assert float(amplitude_variance(parts).detach()) == 0.5
    assert float(amplitude_variance([SpikeEncoder(2, amplitude="scalar")]).detach()) == 0.0
    assert float(amplitude_variance([])) == 0.0


def test_amplitude_variance_pulls_towards_the_mean():
    part = encoder([1.0, 3.0])
    amplitude_variance([part]).backward()
    assert part.amplitude.grad.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(("alpha", "expected", "slope"), [(0.5, 0.0, 0.0), (0.1, 0.04, -0.4)])
def test_a_threshold_is_pulled_up_only_below_the_least(alpha, expected, slope):
    part = encoder([1.0, 1.0], learn_alpha=True, alpha=alpha)
    found = threshold_collapse([part, encoder([1.0], alpha=0.01)], least_alpha=0.3)
    found.backward()
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6)
    assert float(part.alpha.grad) == pytest.approx(slope, rel=1e-6)


def counted(x, **choices):
    values = SpikeEncoder(4, levels=2, amplitude="none", **choices).to(x.dtype)(x).values
    return values, {"ffn_in": values.abs().mean()}


def test_activity_beyond_what_is_wanted_is_pushed_down():
    x = torch.tensor([[2.0, -3.0, 0.1, 0.1]], dtype=torch.float64, requires_grad=True)
    values, events = counted(x)
    assert values.tolist() == [[1.0, -1.0, 0.0, 0.0]]
    assert float(excess_activity([events], {"ffn_in": 0.5}).detach()) == 0.0
    excess = excess_activity([events], {"ffn_in": 0.2})
    excess.backward()
    assert float(excess.detach()) == pytest.approx(0.3)
    assert x.grad[0, 0] > 0 > x.grad[0, 1]
    assert x.grad[0, 2:].tolist() == [0.0, 0.0]


def test_activity_is_averaged_over_blocks_and_summed_over_the_sites_that_are_limited():
    blocks = [{"ffn_in": torch.tensor(0.5), "ffn_mid": torch.tensor(1.0)}, {"ffn_in": torch.tensor(0.1)}]
    assert float(excess_activity(blocks, {"ffn_in": 0.2})) == pytest.approx(0.15)
    assert float(excess_activity(blocks, {"ffn_in": 0.2, "ffn_mid": 0.4})) == pytest.approx(0.15 + 0.6)
    assert float(excess_activity(blocks, {"ffn_in": 0.9}, "l1")) == pytest.approx(0.3)
    assert float(excess_activity(blocks, {"mixer_in": 0.2})) == 0.0


def test_activity_raises_a_threshold_that_learns():
    x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    part = SpikeEncoder(4, levels=2, amplitude="none", learn_alpha=True).double()
    excess_activity([{"ffn_in": part(x).values.abs().mean()}], {"ffn_in": 0.1}).backward()
    assert float(part.alpha.grad) < 0
