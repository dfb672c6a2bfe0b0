import pytest
import torch

from asnn_goose.kernels.reference import linear_scan_reference, membrane_reference, recorded_scan

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


def fire(z, beta, levels=1, valid=None, start=0.0):
    given = torch.tensor(z, dtype=torch.float64).view(1, -1, 1)
    membrane = torch.full((1, 1), start, dtype=torch.float64)
    mask = None if valid is None else torch.tensor([valid])
    found = membrane_reference(
        given, membrane, mask, beta, lambda u: u.sign() * (u.abs() + 0.5).floor().clamp_max(levels)
    )
    return [part.flatten().tolist() for part in found]


def test_a_membrane_leaks_fires_and_keeps_what_a_spike_leaves_by_hand():
    # 0.25; 0.125 + 0.25; 0.1875 + 0.5 fires and leaves -0.3125; -0.15625 - 0.5 fires and leaves 0.34375; 0.171875 + 3.
    values, potentials, last = fire([0.25, 0.25, 0.5, -0.5, 3.0], 0.5)
    assert values == [0, 0, 1, -1, 1]
    assert potentials == [0.25, 0.375, 0.6875, -0.65625, 3.171875]
    assert last == [2.171875]


@pytest.mark.parametrize("levels", [1, 4])
def test_without_a_leak_spikes_and_membrane_sum_to_what_was_given(levels):
    given = torch.randint(-64, 65, (300,), generator=torch.Generator().manual_seed(0)) / 32
    values, _, (last,) = fire(given.tolist(), 1.0, levels, start=0.25)
    assert sum(values) + last == float(given.sum()) + 0.25


def test_masked_steps_are_silent_and_leave_the_membrane_as_if_they_were_not_there():
    given, valid = [0.4, 9.0, 0.4, 9.0, 9.0, 0.4], [True, False, True, False, False, True]
    values, potentials, last = fire(given, 0.9, valid=valid)
    kept, kept_potentials, kept_last = fire([0.4, 0.4, 0.4], 0.9)
    assert (values[0::2][:2] + values[5:], potentials[0::2][:2] + potentials[5:], last) == (
        kept, kept_potentials, kept_last,
    )  # fmt: skip
    assert values[1] == values[3] == values[4] == potentials[1] == 0
