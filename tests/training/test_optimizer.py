import pytest
import torch
from torch import nn

from asnn_goose.config import TrainingBySteps
from asnn_goose.training.optimizer import build_optimizer, learning_rate_at, set_learning_rate

TRAINING = TrainingBySteps(steps=110, warmup_steps=10, learning_rate=1e-3, learning_rate_floor=0.1)


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    rates = [learning_rate_at(step, 110, TRAINING) for step in range(10)]
    assert rates == pytest.approx([1e-3 * (step + 1) / 10 for step in range(10)])


def test_cosine_is_half_way_at_half_time_and_ends_at_the_floor() -> None:
    assert learning_rate_at(60, 110, TRAINING) == pytest.approx(1e-3 * (0.1 + 0.9 * 0.5))
    assert learning_rate_at(110, 110, TRAINING) == pytest.approx(1e-4)


def test_a_warm_up_longer_than_the_run_still_ends_at_the_peak() -> None:
    assert learning_rate_at(4, 5, TRAINING) == pytest.approx(1e-3)


def test_only_matrices_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(module, TRAINING)
    decay = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {2: 0.01, 1: 0.0}


def test_a_step_with_found_inf_changes_nothing_and_is_not_counted() -> None:
    module = nn.Linear(3, 4)
    optimizer = build_optimizer(module, TRAINING)
    before = module.weight.detach().clone()
    module(torch.ones(2, 3)).sum().backward()
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(module.weight, before)
    assert all(float(entry["step"]) == 0.0 for entry in optimizer.state.values())


def test_every_group_gets_the_learning_rate() -> None:
    optimizer = build_optimizer(nn.Linear(3, 4), TRAINING)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
