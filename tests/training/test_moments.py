from dataclasses import replace

import torch
from torch import nn
from torch.optim import AdamW

from asnn_goose.config_objective import Objective
from asnn_goose.training.moments import kept_moments, take_moments
from asnn_goose.training.stages import StagePlan

STAGE = StagePlan(
    index=1, name="distill", kind="distill", steps=4, train="all", sublayers="mixers", batch_size=2, window=8,
    part_weights=None, accumulation=1, processes=1, learning_rate=1e-3, copied_learning_rate=1e-4,
    objective=Objective(), exit=None, keeps_moments=True,
)  # fmt: skip


def step(module, optimizer, times):
    for number in range(times):
        module(torch.full((2, 3), float(number + 1))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_kept_moments_make_two_optimizers_one():
    torch.manual_seed(0)
    whole, parted = nn.Linear(3, 2), nn.Linear(3, 2)
    parted.load_state_dict(whole.state_dict())
    optimizers = [AdamW(module.parameters(), lr=0.1) for module in (whole, parted)]
    for module, optimizer in zip((whole, parted), optimizers, strict=True):
        step(module, optimizer, 3)
    following = AdamW(parted.parameters(), lr=0.1)
    take_moments(following, kept_moments(optimizers[1], STAGE))
    step(whole, optimizers[0], 2)
    step(parted, following, 2)
    assert torch.equal(whole.weight, parted.weight)


def test_fresh_moments_are_none_and_other_weights_take_none():
    module = nn.Linear(3, 2)
    optimizer = AdamW(module.parameters())
    step(module, optimizer, 1)
    assert kept_moments(optimizer, replace(STAGE, keeps_moments=False)) == kept_moments(None, STAGE) == {}
    of_bias = AdamW([module.bias])
    take_moments(of_bias, kept_moments(optimizer, STAGE))
    assert set(of_bias.state) == {module.bias}
