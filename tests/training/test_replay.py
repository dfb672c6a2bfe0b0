import logging

import pytest
import torch
from torch import nn

from asnn_goose.training import replay
from asnn_goose.training.replay import WARM_UPS, FlatGradients, Recording, ReplayedMicroBatch

BATCHES = WARM_UPS + 4
# The same float32 sums in the same order; a GPU may choose another product for a recorded call.
TOLERANCE = {"cpu": 0.0, "cuda": 1e-5}


class Rerun:
    """A recording as a CPU can have one: made without running, and run at the addresses it was made with."""

    def __init__(self, work):
        self.work = work
        with torch.no_grad():
            kept = [parameter.grad.clone() for parameter in Rerun.weights]
        self.found = work()
        for parameter, gradient in zip(Rerun.weights, kept, strict=True):
            parameter.grad.copy_(gradient)

    def __call__(self):
        found = self.work()
        for name, tensor in found.items():
            self.found[name].copy_(tensor)
        return self.found


class Seen(dict):
    """What a teacher shows."""


def network(device):
    torch.manual_seed(0)
    parts = {"table": nn.Embedding(20, 8), "out": nn.Linear(8, 1), "unused": nn.Linear(2, 2)}
    return nn.ModuleDict(parts).to(device)


def work_of(modules, teacher):
    """What is observed, and how it is learned from."""

    def observe(ids):
        with torch.no_grad():
            return Seen(target=teacher["out"](teacher["table"](ids)))

    def learn(ids, seen):
        loss = (modules["out"](modules["table"](ids)) - seen["target"]).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    return observe, learn


def batches(device):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 20, (3, 5), generator=generator).to(device) for _ in range(BATCHES)]


def trained(device, step_of, modules, accumulation):
    """The means of each micro-batch, and the weights after steps of plain gradient descent."""
    step, weights = step_of(modules), list(modules.parameters())
    means = []
    for number, ids in enumerate(batches(device)):
        means.append(step(ids)["loss"])
        if number % accumulation == accumulation - 1:
            with torch.no_grad():
                for weight in weights:
                    if weight.grad is not None:
                        weight -= 0.1 * weight.grad
            if getattr(step, "gradients", None) is None:
                modules.zero_grad(set_to_none=True)
            else:
                step.gradients.zero()
    return torch.stack(means), [weight.detach().clone() for weight in weights]


@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_replayed_micro_batches_teach_what_written_ones_teach(device, accumulation, monkeypatch):
    teacher = network(device)
    student, other = network(device), network(device)
    for modules in (student, other):
        nn.init.zeros_(modules["out"].weight)
    if device == "cpu":
        monkeypatch.setattr(replay, "Recording", Rerun)
        monkeypatch.setattr(Rerun, "weights", [*student["table"].parameters(), *student["out"].parameters()], False)

    def plain(modules):
        observe, learn = work_of(modules, teacher)
        return lambda ids: learn(ids, observe(ids))

    def replayed(modules):
        return ReplayedMicroBatch(*work_of(modules, teacher), list(modules.parameters()))

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


def test_what_cannot_be_recorded_runs_as_written_with_one_warning(monkeypatch, caplog):
    def refuse(work):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(replay, "Recording", refuse)
    modules = network("cpu")
    step = ReplayedMicroBatch(*work_of(modules, network("cpu")), list(modules.parameters()))
    with caplog.at_level(logging.WARNING):
        losses = [step(ids)["loss"] for ids in batches("cpu")]
    assert torch.stack(losses).isfinite().all()
    expected = "training.cuda_graphs: a micro-batch could not be recorded (operation not permitted when stream is "
    assert [record.getMessage() for record in caplog.records] == [expected + "capturing); it runs as written"]


@pytest.mark.gpu
def test_a_recording_runs_only_when_it_is_called():
    x = torch.zeros(3, device="cuda")
    recording = Recording(lambda: x.add_(1))
    assert x.sum().item() == 0
    recording()
    assert x.sum().item() == 3
