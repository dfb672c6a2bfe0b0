from dataclasses import replace

import pytest
import torch
from torch import nn

from asnn_goose.config_objective import Objective
from asnn_goose.config_temperature import AdversarialTemperature, LearnedTemperature
from asnn_goose.config_training import TrainingBySteps
from asnn_goose.training.optimizer import (
    build_optimizer,
    learning_rate_share,
    learning_rates,
    set_learning_rate,
    unclipped,
)
from asnn_goose.training.stages import StagePlan

TRAINING = TrainingBySteps(steps=110, warmup_steps=10, learning_rate=1e-3, learning_rate_floor=0.1)
STAGE = StagePlan(
    index=0, name="distill", kind="distill", steps=110, train="all", sublayers="mixers", batch_size=2, window=8,
    part_weights=None, accumulation=1, processes=1, learning_rate=1e-3, copied_learning_rate=1e-4,
    objective=Objective(), exit=None,
)  # fmt: skip


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    rates = [learning_rate_share(step, 110, TRAINING) for step in range(10)]
    assert rates == pytest.approx([(step + 1) / 10 for step in range(10)])


def test_cosine_is_half_way_at_half_time_and_ends_at_the_floor() -> None:
    assert learning_rate_share(60, 110, TRAINING) == pytest.approx(0.1 + 0.9 * 0.5)
    assert learning_rate_share(110, 110, TRAINING) == pytest.approx(0.1)


def test_a_warm_up_longer_than_the_run_still_ends_at_the_peak() -> None:
    assert learning_rate_share(4, 5, TRAINING) == pytest.approx(1.0)


def test_only_matrices_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(module, TRAINING, STAGE)
    decay = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {2: 0.01, 1: 0.0}


def test_a_step_with_found_inf_changes_nothing_and_is_not_counted() -> None:
    module = nn.Linear(3, 4)
    optimizer = build_optimizer(module, TRAINING, STAGE)
    before = module.weight.detach().clone()
    module(torch.ones(2, 3)).sum().backward()
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(module.weight, before)
    assert all(float(entry["step"]) == 0.0 for entry in optimizer.state.values())


def test_copied_and_new_weights_have_rates_of_their_own() -> None:
    module = nn.Linear(3, 4)
    optimizer = build_optimizer(module, TRAINING, STAGE, {module.bias})
    set_learning_rate(optimizer, 0.25)
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[module.weight] == pytest.approx(0.25e-3)
    assert rates[module.bias] == pytest.approx(0.25e-4)


def test_weights_that_are_held_are_not_in_the_optimizer() -> None:
    module = nn.Linear(3, 4)
    module.weight.requires_grad_(False)
    groups = build_optimizer(module, TRAINING, replace(STAGE, learning_rate=1.0)).param_groups
    assert [p for group in groups for p in group["params"]] == [module.bias]


@pytest.mark.parametrize(("temperature", "rate", "decay", "apart"), [
    (LearnedTemperature(), 0.01, 0.0, True),
    (AdversarialTemperature(), 1e-3, 0.0, True),
    (AdversarialTemperature(optimizer="recorded"), 1e-3, 0.01, False),
    (LearnedTemperature(optimizer="recorded", learning_rate=0.05), 0.05, 0.01, False),
])  # fmt: skip
def test_a_temperature_is_a_group_by_itself(temperature, rate, decay, apart):
    module = nn.Linear(3, 4)
    module.raw = nn.Parameter(torch.zeros(()))
    plan = replace(STAGE, objective=Objective(temperature=temperature))
    optimizer = build_optimizer(module, TRAINING, plan, temperature=module.raw)
    *others, group = optimizer.param_groups
    assert (group["params"], group["lr"], group["weight_decay"]) == ([module.raw], rate, decay)
    assert all(parameter is not module.raw for other in others for parameter in other["params"])
    assert unclipped(optimizer) == ({module.raw} if apart else set())
    assert learning_rates(optimizer)["temperature_learning_rate"] == rate


def test_rates_are_told_by_whose_they_are():
    module = nn.Linear(3, 4)
    optimizer = build_optimizer(module, TRAINING, STAGE, {module.bias})
    assert learning_rates(optimizer) == {"learning_rate": 1e-3, "copied_learning_rate": 1e-4}
    of_copied = build_optimizer(module, TRAINING, STAGE, set(module.parameters()))
    assert learning_rates(of_copied) == {"learning_rate": 1e-4, "copied_learning_rate": 1e-4}


def test_the_recorded_decay_is_on_every_weight_and_the_recorded_warm_up_begins_with_0() -> None:
    module = nn.Linear(3, 4)
    recorded = TRAINING.model_copy(update={"decay": "all", "warmup_from_zero": True, "betas": (0.9, 0.999)})
    optimizer = build_optimizer(module, recorded, STAGE)
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {module.weight: 0.01, module.bias: 0.01}
    plain = torch.optim.AdamW(module.parameters()).defaults
    assert all(group[name] == plain[name] for group in optimizer.param_groups for name in ("betas", "eps"))
    assert [learning_rate_share(step, 110, recorded) for step in (0, 5, 10)] == [0.0, 0.5, 1.0]
