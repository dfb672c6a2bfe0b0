import pytest
import torch

from asnn_goose.spikes.encoder import JITTER, SpikeEncoder
from asnn_goose.spikes.surrogate import SurrogateSpec
from asnn_goose.spikes.threshold import ThresholdSpec, mixed_sizes

# A handful of float64 operations.
CLOSE = {"rtol": 0.0, "atol": 1e-12}
MIXED = ThresholdSpec(channel_share=0.35)


def tokens(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_mixed_sizes_are_those_computed_by_hand():
    x = torch.tensor([[[1.0, -3.0], [-3.0, 1.0], [0.0, 4.0]]], dtype=torch.float64)
    sizes, memory = mixed_sizes(x, 0.25, None, None)
    # Means over channels 2, 2, 2; over the tokens so far (1, 3), (2, 2), (4/3, 8/3).
    expected = [[1.75, 2.25], [2.0, 2.0], [1.5 + 1 / 3, 1.5 + 2 / 3]]
    torch.testing.assert_close(sizes, torch.tensor([expected], dtype=torch.float64), **CLOSE)
    assert memory.tolist() == [[4.0, 8.0, 3.0]]


def test_padding_leaves_running_means_as_they_were():
    x, valid = tokens(2, 6, 5), torch.tensor([[False, True, True, False, True, True]] * 2)
    x[~valid] = torch.nan
    sizes, memory = mixed_sizes(x, 0.5, None, valid)
    expected, whole = mixed_sizes(x[:, valid[0]], 0.5, None, None)
    torch.testing.assert_close(sizes[:, valid[0]], expected, **CLOSE)
    torch.testing.assert_close(memory, whole, **CLOSE)


def test_one_factor_a_channel_is_one_threshold_a_channel():
    encoder = SpikeEncoder(4, learn_alpha=True, threshold=ThresholdSpec(channelwise=True)).double()
    encoder.alpha.data.copy_(torch.tensor([0.5, 1.5, 1.0, 0.25]))
    # Mean magnitude 2: thresholds 1, 3, 2 and 0.5.
    assert encoder(torch.tensor([[2.0, 2.0, -3.0, 1.0]]).double()).values.tolist() == [[1.0, 0.0, -1.0, 1.0]]


def test_channels_learn_their_thresholds_apart():
    encoder = SpikeEncoder(6, learn_alpha=True, threshold=ThresholdSpec(channelwise=True)).double()
    weights = tokens(3, 6, seed=1)
    (encoder(tokens(3, 6)).dense() * weights).sum().backward()
    whole = SpikeEncoder(6, learn_alpha=True).double()
    (whole(tokens(3, 6)).dense() * weights).sum().backward()
    assert encoder.alpha.grad.shape == (6,)
    torch.testing.assert_close(encoder.alpha.grad.sum(), whole.alpha.grad, **CLOSE)


def test_the_recorded_estimator_gives_no_alpha_a_gradient():
    recorded = SurrogateSpec("recorded_ste")
    encoder = SpikeEncoder(6, learn_alpha=True, surrogate=recorded, threshold=ThresholdSpec(channelwise=True)).double()
    encoder(tokens(3, 6).requires_grad_()).dense().sum().backward()
    assert encoder.alpha.grad is None
    assert encoder.amplitude.grad is not None


def test_a_scheduled_alpha_is_a_weight_that_never_learns():
    encoder = SpikeEncoder(6, alpha=0.5, threshold=ThresholdSpec(scheduled=True)).double()
    before = encoder(tokens(3, 6)).values
    assert isinstance(encoder.alpha, torch.nn.Parameter)
    assert not encoder.alpha.requires_grad
    assert not encoder.stores_alpha
    with torch.no_grad():
        encoder.alpha.fill_(2.0)
    assert encoder(tokens(3, 6)).values.count_nonzero() < before.count_nonzero()


def test_amplitudes_are_used_within_their_range_and_learn_only_there():
    encoder = SpikeEncoder(3, alpha=0.5, amplitude="channel", amplitude_range=(0.25, 4.0)).double()
    encoder.amplitude.data.copy_(torch.tensor([0.1, 2.0, 9.0]))
    dense = encoder(torch.ones(1, 3, dtype=torch.float64)).dense()
    dense.sum().backward()
    assert dense.tolist() == [[0.25, 2.0, 4.0]]
    assert encoder.amplitude.grad.tolist() == [0.0, 1.0, 0.0]
    assert encoder.channel_amplitude().tolist() == [0.25, 2.0, 4.0]


def test_a_jitter_is_near_one_and_seeded():
    def drawn():
        torch.manual_seed(3)
        return SpikeEncoder(64, amplitude="channel", jitter=True).amplitude.detach()

    assert torch.equal(drawn(), drawn())
    assert len(drawn().unique()) > 60
    assert float((drawn() - 1).abs().max()) <= JITTER


@pytest.mark.parametrize(
    "choices",
    [{"scale": "token"}, {"kind": "quantized"}],
)
def test_a_threshold_of_running_means_goes_with_unit_spikes_of_mean_magnitudes(choices):
    with pytest.raises(ValueError, match="threshold"):
        SpikeEncoder(4, threshold=MIXED, **choices)


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match=r"channel_share must be in \[0, 1\], got 1.5"):
        ThresholdSpec(channel_share=1.5)
