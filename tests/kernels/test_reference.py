import pytest
import torch

from asnn_goose.kernels.reference import linear_scan_reference, recorded_scan

# float64 rounds at 1e-16; a hundred steps and a closed form's powers stay below this.
FLOAT64_TOLERANCE = 1e-12


def test_two_steps_match_the_recurrence_by_hand() -> None:
    k, v = torch.tensor([[[2.0], [3.0]]]), torch.tensor([[[5.0], [-1.0]]])
    states, final = linear_scan_reference(k, v, torch.tensor([0.5]), torch.tensor([[4.0]]), None)
    assert states.flatten().tolist() == [12.0, 3.0]
    assert final.item() == 3.0


def test_constant_input_gives_the_geometric_series() -> None:
    decay, time = torch.tensor([0.378, 0.9, 0.99], dtype=torch.float64), 100
    ones = torch.ones(1, time, 3, dtype=torch.float64)
    states, _ = linear_scan_reference(ones, ones, decay, torch.zeros(1, 3, dtype=torch.float64), None)
    steps = torch.arange(1, time + 1, dtype=torch.float64)[:, None]
    expected = (1 - decay**steps) / (1 - decay)
    torch.testing.assert_close(states[0], expected, rtol=FLOAT64_TOLERANCE, atol=0)


def test_silent_input_lets_the_state_decay() -> None:
    zeros, decay = torch.zeros(1, 50, 1, dtype=torch.float64), torch.tensor([0.9], dtype=torch.float64)
    _, final = linear_scan_reference(zeros, zeros, decay, torch.ones(1, 1, dtype=torch.float64), None)
    assert final.item() == pytest.approx(0.9**50, rel=FLOAT64_TOLERANCE)


def test_masked_steps_leave_the_state_as_if_they_were_not_there() -> None:
    k, v = torch.randn(2, 1, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    decay, start = torch.full((3,), 0.7, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    valid = torch.tensor([[True, False, True, False, False, True]])
    states, final = linear_scan_reference(k, v, decay, start, valid)
    kept, kept_final = linear_scan_reference(k[:, valid[0]], v[:, valid[0]], decay, start, None)
    assert torch.equal(states[:, [0, 2, 5]], kept)
    assert torch.equal(states[:, [1, 3, 4]], kept[:, [0, 1, 1]])
    assert torch.equal(final, kept_final)


def test_recorded_scan_follows_the_recurrence_at_first_and_then_forgets() -> None:
    ones, decay = torch.ones(1, 60, 1, dtype=torch.float64), torch.tensor([0.378], dtype=torch.float64)
    states = recorded_scan(ones, ones, decay)[0, :, 0]
    steady = 1 / (1 - 0.378)
    assert states[10].item() == pytest.approx(steady, rel=1e-3)
    assert states[30].item() < 0.01 * steady
    assert states[59].item() < 1e-9
