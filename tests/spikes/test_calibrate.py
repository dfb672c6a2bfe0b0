import pytest
import torch

from asnn_goose.spikes import calibrate
from asnn_goose.spikes.calibrate import GRID, alpha_errors, best_alpha, factor_events, quiet_alpha
from asnn_goose.spikes.encoder import SpikeEncoder


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def encoder(levels, **choices):
    return SpikeEncoder(32, levels, amplitude="none", scale="token", **choices).double()


@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_an_error_is_that_of_an_encoder_with_this_factor(levels, kind):
    x = noise(2, 5, 32)
    errors = alpha_errors(encoder(levels, kind=kind), x)
    for place in (0, 12, 31):
        dense = encoder(levels, kind=kind, alpha=GRID[place])(x).dense()
        torch.testing.assert_close(errors[place], (x - dense).square().sum())


def test_spikes_that_are_exact_for_a_factor_give_it_back():
    """Tokens of -4 to 4 times a step, whose mean magnitude is 20/9 of it: a threshold of half of that is exact."""
    x = torch.arange(-4, 5, dtype=torch.float64).repeat(3, 4, 1) * torch.tensor([[[0.1]], [[1.0]], [[2.0]]])
    found = best_alpha(alpha_errors(SpikeEncoder(9, 4, scale="token"), x))
    assert float(found) == pytest.approx(0.5 / (20 / 9), rel=0.1)


def test_more_levels_want_finer_steps():
    x = noise(200, 32)
    found = [float(best_alpha(alpha_errors(encoder(levels), x))) for levels in (1, 2, 4, 8)]
    assert found == sorted(found, reverse=True)
    # The best step of three levels for a normal variable is 1.22 deviations (Max 1960); half of it is
    # 0.77 mean magnitudes.
    assert found[0] == pytest.approx(0.77, rel=0.18)


def test_chunks_and_batches_add_up(monkeypatch):
    x = noise(6, 7, 32)
    whole = alpha_errors(encoder(2), x)
    monkeypatch.setattr(calibrate, "CHUNK_VALUES", 100)
    torch.testing.assert_close(alpha_errors(encoder(2), x), whole)
    torch.testing.assert_close(alpha_errors(encoder(2), x[:2]) + alpha_errors(encoder(2), x[2:]), whole)


def test_silence_leaves_the_smallest_factor():
    assert float(best_alpha(alpha_errors(encoder(2), torch.zeros(3, 32)))) == pytest.approx(GRID[0])


@pytest.mark.parametrize("levels", [1, 4])
def test_events_are_those_of_an_encoder_with_this_factor(levels, monkeypatch):
    x = noise(6, 7, 32)
    monkeypatch.setattr(calibrate, "CHUNK_VALUES", 100)
    events = factor_events(encoder(levels), x)
    for place in (0, 12, 31):
        assert float(events[place]) == float(encoder(levels, alpha=GRID[place])(x).values.abs().sum())


def test_the_quiet_factor_is_the_smallest_with_no_more_events():
    x = noise(200, 32)
    events = factor_events(encoder(1), x)
    alpha = float(quiet_alpha(events, 0.25 * x.numel()))
    place = min(range(len(GRID)), key=lambda index: abs(GRID[index] - alpha))
    assert events[place] <= 0.25 * x.numel() < events[place - 1]
    # A quarter of normal numbers lies beyond 1.15 deviations, which are 1.44 mean magnitudes.
    assert alpha == pytest.approx(1.44, rel=0.18)
    assert float(quiet_alpha(events, -1.0)) == pytest.approx(GRID[-1])
