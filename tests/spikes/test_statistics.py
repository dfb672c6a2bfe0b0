import pytest
import torch

from asnn_goose.spikes.encoder import SpikeEncoder
from asnn_goose.spikes.statistics import encoder_statistics, layer_statistics, site_statistics

# Two rows of two tokens, four channels: always +, silent, mixed signs, once -2.
VALUES = torch.tensor([[[1, 0, -1, 0], [1, 0, 1, 0]], [[2, 0, -1, -2], [1, 0, 0, 0]]]).float()


def floats(statistics):
    return {name: float(value) for name, value in vars(statistics).items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("density", 8 / 16),
        ("events_per_activation", 10 / 16),
        ("silent_channel_fraction", 1 / 4),
        ("saturated_channel_fraction", 1 / 4),
        ("sign_balance", (5 - 3) / 8),
        ("mean_value", 2 / 16),
        ("value_deviation", (14 / 16 - (2 / 16) ** 2) ** 0.5),
        # Channels spike at 1, 0, 3/4 and 1/4 of the tokens.
        ("channel_rate_deviation", ((1 + 9 / 16 + 1 / 16) / 4 - 1 / 4) ** 0.5),
    ],
)
def test_statistic_is_what_counting_by_hand_gives(name, expected):
    assert floats(site_statistics(VALUES))[name] == pytest.approx(expected, rel=1e-15)


def test_silence_is_finite_and_balanced():
    assert floats(site_statistics(torch.zeros(2, 3, 4))) == {
        "density": 0.0,
        "events_per_activation": 0.0,
        "silent_channel_fraction": 1.0,
        "saturated_channel_fraction": 0.0,
        "sign_balance": 0.0,
        "mean_value": 0.0,
        "value_deviation": 0.0,
        "channel_rate_deviation": 0.0,
    }


@pytest.mark.parametrize(("value", "balance"), [(1.0, 1.0), (-1.0, -1.0)])
def test_full_saturation_of_one_sign(value, balance):
    statistics = site_statistics(torch.full((5, 4), value))
    assert statistics.density == statistics.saturated_channel_fraction == 1.0
    assert statistics.sign_balance == balance


def test_statistics_do_not_depend_on_how_tokens_are_grouped():
    assert floats(site_statistics(VALUES)) == floats(site_statistics(VALUES.reshape(4, 4)))


def test_every_site_of_every_layer_has_a_name():
    layers = [{"k": VALUES, "v": torch.zeros(1, 4)}, {"k": torch.zeros(1, 4)}]
    statistics = layer_statistics(layers)
    assert list(statistics) == ["layer_0.k", "layer_0.v", "layer_1.k"]
    assert statistics["layer_0.k"].density == 0.5
    assert statistics["layer_1.k"].density == 0.0


@pytest.mark.parametrize("learned", [True, False])
def test_an_encoder_tells_its_threshold_and_amplitudes(learned):
    encoder = SpikeEncoder(4, alpha=0.5, learn_alpha=learned, amplitude="channel")
    encoder.amplitude.data.copy_(torch.tensor([1.0, 1.0, 3.0, 3.0]))
    assert floats(encoder_statistics(encoder)) == {"alpha": 0.5, "amplitude": 2.0, "amplitude_deviation": 1.0}
    assert encoder_statistics(SpikeEncoder(4, amplitude="none")).amplitude == 1.0


def test_statistics_wait_for_no_device():
    """On a device without numbers, anything that looks at one fails."""
    with torch.device("meta"):
        statistics = site_statistics(torch.zeros(2, 3, 4))
        learned = encoder_statistics(SpikeEncoder(4, learn_alpha=True))
    assert all(value.is_meta for part in (statistics, learned) for value in vars(part).values())
