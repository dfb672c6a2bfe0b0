import math

import pytest
import torch

from asnn_goose.config_validation import ValidationOptions
from asnn_goose.evaluation.observation import SiteObservation
from asnn_goose.evaluation.site_information import InformationCounts, best_bits, neighbor_bits, spread_channels
from asnn_goose.evaluation.teacher_targets import TeacherTargets
from asnn_goose.information.bins import equal_mass_borders

ROWS, TIME, COMPONENTS, BINS = 24, 128, 2, 4
OPTIONS = ValidationOptions(components=COMPONENTS, bins=BINS, permutations=49, permuted_rows=8, neighbor_tokens=400)


@pytest.fixture(scope="module")
def scores():
    return torch.randn(ROWS, TIME - 1, COMPONENTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def targets(scores):
    borders = equal_mass_borders(scores.flatten(0, 1), BINS)
    return TeacherTargets(torch.zeros(COMPONENTS).double(), torch.eye(COMPONENTS).double(), borders)


def observed(values):
    """Channels whose pre-activations are these numbers, with a first token that counts for nothing."""
    first = torch.full_like(values[:, :1], 1e6)
    z = torch.cat((first, values), dim=1).float()
    return SiteObservation(z.sign() * (z.abs() > 0.5), z)


def summary(seen, scores, targets, parts=1, plain=False):
    z = seen.preactivations[:, 1:].flatten(0, 1)
    channels = torch.arange(z.shape[1])
    counts = InformationCounts(1, OPTIONS, targets, None if plain else equal_mass_borders(z, BINS), channels)
    first_row = 0
    for spikes, before, wanted in zip(
        seen.spikes.chunk(parts), seen.preactivations.chunk(parts), scores.chunk(parts), strict=True
    ):
        counts.add(SiteObservation(spikes, before), wanted, first_row)
        first_row += len(wanted)
    if plain:
        return counts.spikes_bits()
    return counts.summary(2, "k", 1, neighbor_bits({(2, "k"): counts}, OPTIONS.neighbors)[2, "k"])


def test_a_channel_that_is_a_component_tells_its_spikes_entropy_and_keeps_what_they_can(scores, targets):
    found = summary(observed(scores), scores, targets)
    # P(|N(0,1)| < 1/2) = 0.3829: the bins, whose borders are 0 and +-0.6745, split each of the three values.
    silent = math.erf(0.5 / math.sqrt(2))
    spike = (1 - silent) / 2
    inner = 0.25 - silent / 2
    joint = [silent / 2] * 2 + [0.25] * 2 + [inner] * 2
    bits = entropy([silent, spike, spike]) + 2 - entropy(joint)
    assert found.spikes_bits == pytest.approx(bits, abs=0.02)
    assert found.own_preactivation_bits == pytest.approx(bits, abs=0.02)
    assert found.preactivation_bits == pytest.approx(2, abs=0.01)
    assert found.kept_share == pytest.approx(bits / 2, abs=0.02)


def entropy(parts):
    return -sum(part * math.log2(part) for part in parts)


def test_spikes_that_know_beat_every_permutation_and_their_controls_do_not(scores, targets):
    found = summary(observed(scores), scores, targets)
    assert found.null.p == pytest.approx(1 / 50)
    assert found.null.z > 50
    assert found.best_lag == 0
    for name in ("time_shift", "rate_matched_noise", "teacher_shuffle"):
        assert abs(found.controls[name]) < 0.02
    # Without its sign a spike still says that the component is not small.
    assert 0.05 < found.controls["sign_shuffle"] < 0.6 * found.spikes_bits


def test_noise_is_no_better_than_its_null(scores, targets):
    noise = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = summary(observed(noise), scores, targets)
    assert found.null.p > 0.02
    assert abs(found.spikes_bits) < 0.01
    assert abs(found.neighbor_bits) < 0.1


def test_spikes_one_token_late_tell_most_at_lag_one(scores, targets):
    found = summary(observed(scores.roll(1, dims=1)), scores, targets)
    assert found.best_lag == 1
    assert found.lag_bits[1] > 0.5 > 0.05 > abs(found.lag_bits[0])


def test_distances_say_about_what_bins_say(scores, targets):
    found = summary(observed(scores), scores, targets)
    silent = math.erf(0.5 / math.sqrt(2))
    assert found.neighbor_bits == pytest.approx(entropy([silent, (1 - silent) / 2, (1 - silent) / 2]), abs=0.2)


def test_batches_change_nothing_and_the_plain_form_counts_the_same(scores, targets):
    seen = observed(scores)
    whole = summary(seen, scores, targets)
    assert summary(seen, scores, targets, parts=5) == whole
    assert summary(seen, scores, targets, parts=3, plain=True) == pytest.approx(whole.spikes_bits, rel=1e-5)


def test_best_bits_are_a_mean_over_channels_of_the_best_component():
    equal, apart = torch.tensor([[8, 0], [0, 8]]), torch.tensor([[4, 4], [4, 4]])
    tables = torch.stack((torch.stack((apart, equal)), torch.stack((apart, apart))))
    # Corrected by (m_x + m_y - m_xy - 1) / (2 N ln 2): +1 cell too few for the diagonal, -1 for the full table.
    correction = 1 / (2 * 16 * math.log(2))
    assert float(best_bits(tables)) == pytest.approx(((1 + correction) - correction) / 2)


def test_channels_are_spread_evenly():
    assert spread_channels(10, 4).tolist() == [0, 2, 5, 7]
    assert spread_channels(3, 4).tolist() == [0, 1, 2]
