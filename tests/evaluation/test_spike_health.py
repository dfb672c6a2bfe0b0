import math

import pytest
import torch

from asnn_goose.evaluation.spike_health import HealthCounts

# Channels: never, always +1, always -1 but once 0, +-1 by turns, one spike in 2000 tokens.
TIME = 1000


@pytest.fixture
def spikes():
    made = torch.zeros(2, TIME, 5)
    made[..., 1] = 1
    made[..., 2] = -1
    made[0, 0, 2] = 0
    made[:, ::2, 3], made[:, 1::2, 3] = 1, -1
    made[1, 3, 4] = 1
    return made


def counted(spikes, parts=1, levels=1):
    counts = HealthCounts(spikes.shape[-1], levels)
    for part in spikes.chunk(parts):
        counts.add(part)
    return counts.summary(3, "k")


def test_dead_saturated_and_silent_channels_are_told_apart(spikes):
    found = counted(spikes)
    assert (found.layer, found.site, found.channels) == (3, "k", 5)
    assert (found.dead_fraction, found.saturated_fraction, found.silent_channel_fraction) == (0.4, 0.4, 0.2)
    assert found.rate_histogram == (2, *[0] * 18, 3)


def test_rates_signs_and_events_are_means_over_all_values(spikes):
    found = counted(spikes)
    events = 2000 + 1999 + 2000 + 1
    assert found.rate == pytest.approx(events / 10_000, rel=1e-5)
    assert found.events_per_activation == found.rate
    assert found.sign_balance == pytest.approx((2000 + 1000 + 1 - 1999 - 1000) / events, rel=1e-4)


def test_flicker_counts_changes_within_rows_alone(spikes):
    changes = 0 + 0 + 1 + 2 * (TIME - 1) + 2
    assert counted(spikes).flicker == pytest.approx(changes / (5 * 2 * (TIME - 1)), rel=1e-5)


def test_entropy_is_the_mean_over_channels(spikes):
    rare = 1 / 2000
    binary = -(rare * math.log2(rare) + (1 - rare) * math.log2(1 - rare))
    assert counted(spikes).entropy_bits == pytest.approx((0 + 0 + binary + 1 + binary) / 5, rel=1e-4)


def test_larger_spikes_are_as_many_events():
    spikes = torch.tensor([[[0.0, 3.0], [-2.0, 1.0]]])
    found = counted(spikes, levels=3)
    assert (found.rate, found.events_per_activation) == (0.75, 1.5)


def test_batches_change_nothing_and_a_site_that_never_spikes_has_no_balance(spikes):
    assert counted(spikes, parts=2) == counted(spikes)
    assert counted(torch.zeros(2, 8, 3)).sign_balance is None
