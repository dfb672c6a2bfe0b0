import pytest
import torch

from asnn_goose.spikes.statistics import layer_statistics, site_statistics

# Two rows of two tokens, four channels: always +, silent, mixed signs, once -2.
VALUES = torch.tensor([[[1, 0, -1, 0], [1, 0, 1, 0]], [[2, 0, -1, -2], [1, 0, 0, 0]]]).float()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("density", 8 / 16),
        ("events_per_activation", 10 / 16),
        ("silent_channel_fraction", 1 / 4),
        ("saturated_channel_fraction", 1 / 4),
        ("sign_balance", (5 - 3) / 8),
    ],
)
def test_statistic_is_what_counting_by_hand_gives(name, expected):
    assert site_statistics(VALUES).as_floats()[name] == expected


def test_silence_is_finite_and_balanced():
    assert site_statistics(torch.zeros(2, 3, 4)).as_floats() == {
        "density": 0.0,
        "events_per_activation": 0.0,
        "silent_channel_fraction": 1.0,
        "saturated_channel_fraction": 0.0,
        "sign_balance": 0.0,
    }


@pytest.mark.parametrize(("value", "balance"), [(1.0, 1.0), (-1.0, -1.0)])
def test_full_saturation_of_one_sign(value, balance):
    statistics = site_statistics(torch.full((5, 4), value))
    assert statistics.density == statistics.saturated_channel_fraction == 1.0
    assert statistics.sign_balance == balance


def test_statistics_do_not_depend_on_how_tokens_are_grouped():
    assert site_statistics(VALUES).as_floats() == site_statistics(VALUES.reshape(4, 4)).as_floats()


def test_every_site_of_every_layer_has_a_name():
    layers = [{"k": VALUES, "v": torch.zeros(1, 4)}, {"k": torch.zeros(1, 4)}]
    statistics = layer_statistics(layers)
    assert list(statistics) == ["layer_0.k", "layer_0.v", "layer_1.k"]
    assert statistics["layer_0.k"].density == 0.5
    assert statistics["layer_1.k"].density == 0.0
