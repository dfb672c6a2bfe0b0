import pytest
import torch

from asnn_goose.kernels.delta_reference import delta_rule_reference


def one_head(*rows):
    """[1, time, 1, width] from rows of numbers."""
    return torch.tensor(rows, dtype=torch.float64)[None, :, None]


def test_by_hand():
    """Write 3 at the first key, erase half of what is there and write 1, then read."""
    key, value = one_head([1.0, 0.0], [1.0, 0.0]), one_head([3.0], [1.0])
    rates = {"log_decay": [0.0, 0.0], "erase": [0.0, 0.5], "write": [1.0, 1.0]}
    scalars = [torch.tensor(values, dtype=torch.float64)[None, :, None] for values in rates.values()]
    receptance = one_head([1.0, 1.0], [1.0, 1.0]).unsqueeze(3)
    read, state = delta_rule_reference(receptance, key, value, *scalars, torch.zeros(1, 1, 1, 2).double(), None)
    assert read.flatten().tolist() == [3.0, 2.5]
    assert state.flatten().tolist() == [2.5, 0.0]


def test_decay_forgets_and_orthogonal_keys_do_not_meet():
    key, value = one_head([1.0, 0.0], [0.0, 1.0]), one_head([2.0], [5.0])
    log_decay = torch.tensor([0.0, -0.5], dtype=torch.float64)[None, :, None]
    ones = torch.ones(1, 2, 1, dtype=torch.float64)
    receptance = one_head([1.0, 0.0], [1.0, 0.0]).unsqueeze(3)
    read, state = delta_rule_reference(
        receptance, key, value, log_decay, ones, ones, torch.zeros(1, 1, 1, 2).double(), None
    )
    assert read.flatten().tolist() == pytest.approx([2.0, 2.0 * torch.tensor(-0.5).exp().item()], rel=1e-6)
    assert state.flatten().tolist() == pytest.approx([2.0 * torch.tensor(-0.5).exp().item(), 5.0], rel=1e-6)


def test_an_invalid_step_leaves_the_state():
    key, value = one_head([1.0, 0.0], [1.0, 0.0]), one_head([3.0], [7.0])
    ones = torch.ones(1, 2, 1, dtype=torch.float64)
    valid = torch.tensor([[True, False]])
    receptance = one_head([1.0, 0.0], [1.0, 0.0]).unsqueeze(3)
    read, state = delta_rule_reference(
        receptance, key, value, 0 * ones, ones, ones, torch.zeros(1, 1, 1, 2).double(), valid
    )
    assert read.flatten().tolist() == [3.0, 3.0]
    assert state.flatten().tolist() == [3.0, 0.0]
