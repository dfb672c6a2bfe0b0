import pytest
import torch

from asnn_goose.evaluation.teacher_targets import fit_targets

MASSIVE = 3000.0


@pytest.fixture
def hidden():
    """Tokens along one direction, with a little noise, and a massive first token of each row along another."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(8, 32, 16, generator=generator)
    along = torch.zeros(16)
    along[4], along[9] = 1.0, -1.0
    made = made + 20 * torch.randn(8, 32, 1, generator=generator) * along
    made[:, 0, 2] += MASSIVE
    return made


def test_the_first_component_is_the_direction_of_most_variance(hidden):
    found = fit_targets(hidden, components=2, bins=4).directions[:, 0].abs()
    assert found[[4, 9]].square().sum() > 0.98


def test_a_massive_first_token_changes_nothing(hidden):
    loud, quiet = hidden.clone(), hidden.clone()
    quiet[:, 0, 2] -= MASSIVE
    torch.testing.assert_close(fit_targets(loud, 3, 4).directions, fit_targets(quiet, 3, 4).directions)


def test_bins_of_the_calibration_hold_equally_many(hidden):
    targets = fit_targets(hidden, components=2, bins=4)
    codes = targets.codes(targets.scores(hidden))
    counts = torch.stack([torch.bincount(codes[..., place].flatten(), minlength=4) for place in range(2)])
    assert (counts - 8 * 31 / 4).abs().max() <= 1


def test_scores_leave_out_the_first_token_and_no_other(hidden):
    targets = fit_targets(hidden, components=2, bins=4)
    other = hidden.clone()
    other[:, 0] = 0
    assert targets.scores(hidden).shape == (8, 31, 2)
    torch.testing.assert_close(targets.scores(other), targets.scores(hidden), rtol=0, atol=0)


def test_more_components_than_channels_are_refused(hidden):
    with pytest.raises(ValueError, match="at most the teacher's width of 16, got 17"):
        fit_targets(hidden, components=17, bins=4)
