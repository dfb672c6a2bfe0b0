import math

import pytest
import torch

from asnn_goose.evaluation.observation import SiteObservation
from asnn_goose.evaluation.site_probe import ProbeEvidence
from asnn_goose.evaluation.teacher_targets import TeacherTargets
from asnn_goose.information.bins import equal_mass_borders

ROWS, TIME, BINS, NOISE = 40, 129, 8, 0.5


@pytest.fixture(scope="module")
def seen():
    """Two channels, of which the first is the target and some noise; its sign alone is its spike."""
    z = torch.randn(ROWS, TIME, 2, generator=torch.Generator().manual_seed(0))
    return SiteObservation(z.sign(), z)


@pytest.fixture(scope="module")
def scores(seen):
    noise = torch.randn(ROWS, TIME - 1, 1, generator=torch.Generator().manual_seed(1))
    return (seen.preactivations[:, 1:, :1] + NOISE * noise).double()


def summary(seen, scores, parts=1):
    targets = TeacherTargets(
        torch.zeros(1).double(), torch.eye(1).double(), equal_mass_borders(scores.flatten(0, 1), BINS)
    )
    probe, first_row = ProbeEvidence(2, targets, ROWS // 2, seed=0), 0
    for spikes, before, wanted in zip(
        seen.spikes.chunk(parts), seen.preactivations.chunk(parts), scores.chunk(parts), strict=True
    ):
        probe.add(SiteObservation(spikes, before), wanted, first_row)
        first_row += len(wanted)
    return probe.summary(0, "v", 2)


def test_a_probe_proves_no_more_than_there_is_and_nearly_that_of_what_is_linear(seen, scores):
    found = summary(seen, scores)
    all_there_is = 0.5 * math.log2(1 + 1 / NOISE**2)
    assert 0.85 * all_there_is < found.preactivation_bits < all_there_is
    assert 0 < found.spikes_bits < found.preactivation_bits
    assert found.kept_share == pytest.approx(found.spikes_bits / found.preactivation_bits, rel=1e-4)
    assert found.target_entropy_bits == pytest.approx(3, abs=0.01)
    assert (found.layer, found.site, found.teacher_layer) == (0, "v", 1)


def test_controls_prove_nothing(seen, scores):
    found = summary(seen, scores)
    assert set(found.controls) == {"time_shift", "sign_shuffle", "rate_matched_noise", "teacher_shuffle"}
    assert all(bits < 0.01 for bits in found.controls.values())


@pytest.mark.parametrize("parts", [3, 40])
def test_batches_change_nothing_even_across_the_halves(seen, scores, parts):
    whole, batched = summary(seen, scores), summary(seen, scores, parts)
    assert batched.spikes_bits == pytest.approx(whole.spikes_bits, rel=1e-5)
    assert batched.target_entropy_bits == whole.target_entropy_bits


def test_rows_it_was_fitted_to_do_not_count(seen, scores):
    other = scores.clone()
    other[: ROWS // 2] = torch.randn(other[: ROWS // 2].shape, generator=torch.Generator().manual_seed(2))
    # Fitted to nothing, it proves nothing on the half where there is much to know.
    assert summary(seen, other).preactivation_bits < 0.05
