import logging

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from asnn_goose.data.feed import Batch
from asnn_goose.training import replay
from asnn_goose.training.hidden_cache import HiddenCache
from asnn_goose.training.replay import WARM_UPS, FlatGradients, Recording, ReplayedMicroBatch
from asnn_goose.training.step import TeacherView
from asnn_goose.training.work import StageWork

BATCHES, ROWS = WARM_UPS + 7, 4
# A row that is remembered was computed in another batch, where sums may round otherwise; so may a recorded product.
TOLERANCE = {"cpu": 1e-6, "cuda": 1e-5}


class Rerun:
    """A recording as a CPU can have one: made without running, and run at the addresses it was made with."""

    def __init__(self, work):
        self.work = work
        kept = [None if parameter.grad is None else parameter.grad.clone() for parameter in Rerun.weights]
        self.found = work()
        for parameter, gradient in zip(Rerun.weights, kept, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(torch.zeros_like(parameter) if gradient is None else gradient)

    def __call__(self):
        if Rerun.overwrites:
            for parameter in Rerun.weights:
                parameter.grad.zero_()
        for place, tensor in zip(tree_leaves(self.found), tree_leaves(self.work()), strict=True):
            place.copy_(tensor)
        return self.found


class Work:
    """What a stage works with, as far as a micro-batch needs it."""

    see = StageWork.see

    def __init__(self, observe, cache=None):
        self.observe, self.cache = observe, cache


def network(device):
    torch.manual_seed(0)
    parts = {"table": nn.Embedding(20, 8), "out": nn.Linear(8, 1), "unused": nn.Linear(2, 2)}
    return nn.ModuleDict(parts).to(device)


def work_of(modules, teacher):
    """What is observed, and how it is learned from."""

    def observe(ids):
        with torch.no_grad():
            return TeacherView(teacher["out"](teacher["table"](ids)))

    def learn(ids, seen):
        loss = (modules["out"](modules["table"](ids)) - seen.hidden).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    return observe, learn


def batches(device):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, 20, (ROWS, 5), generator=generator).to(device)
    choices = [torch.randint(0, ROWS, (3,), generator=generator) for _ in range(BATCHES)]
    return [Batch(rows[chosen], chosen.numpy()) for chosen in choices]


def trained(device, step_of, modules, accumulation):
    """The means of each micro-batch, and the weights after steps of plain gradient descent."""
    step, weights = step_of(modules), list(modules.parameters())
    means = []
    for number, batch in enumerate(batches(device)):
        means.append(step(batch)["loss"])
        if number % accumulation == accumulation - 1:
            with torch.no_grad():
                for weight in weights:
                    if weight.grad is not None:
                        weight -= 0.1 * weight.grad
            if isinstance(step, ReplayedMicroBatch):
                step.forget()
            else:
                modules.zero_grad(set_to_none=True)
    return torch.stack(means), [weight.detach().clone() for weight in weights]


@pytest.mark.parametrize(("accumulation", "cached"), [(1, False), (2, False), (3, False), (2, True)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_replayed_micro_batches_teach_what_written_ones_teach(device, accumulation, cached, monkeypatch):
    teacher = network(device)
    student, other = network(device), network(device)
    for modules in (student, other):
        nn.init.zeros_(modules["out"].weight)
    if device == "cpu":
        monkeypatch.setattr(replay, "Recording", Rerun)
        monkeypatch.setattr(Rerun, "weights", [*student["table"].parameters(), *student["out"].parameters()], False)
        monkeypatch.setattr(Rerun, "overwrites", accumulation == 1, False)

    def plain(modules):
        observe, learn = work_of(modules, teacher)
        return lambda batch: learn(batch.ids, observe(batch.ids))

    def replayed(modules):
        observe, learn = work_of(modules, teacher)
        cache = HiddenCache(ROWS, 5, 1, torch.float32, torch.device(device)) if cached else None
        return ReplayedMicroBatch(Work(observe, cache), learn, list(modules.parameters()), accumulation > 1)

    expected = trained(device, plain, other, accumulation)
    found = trained(device, replayed, student, accumulation)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[device], atol=TOLERANCE[device])
    assert student["unused"].weight.grad is None


def test_gradients_keep_their_values_and_then_their_place():
    layer = nn.Linear(3, 2)
    layer(torch.ones(1, 3)).sum().backward()
    before = layer.weight.grad.clone()
    gradients = FlatGradients(layer.parameters())
    place = layer.weight.grad.data_ptr()
    assert torch.equal(layer.weight.grad, before)
    layer(torch.ones(1, 3)).sum().backward()
    assert torch.equal(layer.weight.grad, 2 * before)
    gradients.zero()
    assert layer.weight.grad.data_ptr() == place
    assert not layer.weight.grad.any()


@pytest.mark.parametrize("accumulates", [False, True])
def test_what_cannot_be_recorded_runs_as_written_with_one_warning(accumulates, monkeypatch, caplog):
    modules, other = network("cpu"), network("cpu")

    def refuse(work):
        work()
        for parameter in modules.parameters():
            # What is made while a recording fails holds anything.
            if parameter.grad is not None and not accumulates:
                parameter.grad.fill_(torch.nan)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(replay, "Recording", refuse if not accumulates else refuse_at_once)
    observe, learn = work_of(modules, network("cpu"))
    with caplog.at_level(logging.WARNING):
        found = trained(
            "cpu",
            lambda _: ReplayedMicroBatch(Work(observe), learn, list(modules.parameters()), accumulates),
            modules,
            1,
        )
    expected = "training.cuda_graphs: a micro-batch could not be recorded (operation not permitted when stream is "
    assert [record.getMessage() for record in caplog.records] == [expected + "capturing); it runs as written"]
    plain_observe, plain_learn = work_of(other, network("cpu"))
    plain = trained("cpu", lambda _: lambda batch: plain_learn(batch.ids, plain_observe(batch.ids)), other, 1)
    torch.testing.assert_close(found, plain)


def refuse_at_once(work):
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.mark.gpu
def test_a_recording_runs_only_when_it_is_called():
    x = torch.zeros(3, device="cuda")
    recording = Recording(lambda: x.add_(1))
    assert x.sum().item() == 0
    recording()
    assert x.sum().item() == 3
