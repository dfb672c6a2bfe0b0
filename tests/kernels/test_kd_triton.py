import importlib
import sys

import pytest
import torch

from asnn_goose.errors import MachineError
from asnn_goose.kernels.divergences import FORWARD_KL
from asnn_goose.kernels.head_chunks import ChunkSpace
from asnn_goose.kernels.kd_chunk import ChunkPlan, TorchRule

# Two orders of summation in float32.
TOLERANCE = 1e-5


def plan(labels, scored, valid, temperature=1.5):
    return ChunkPlan(temperature, FORWARD_KL, labels[:, None], scored[:, None], valid[:, None], 0.7, 0.3, True)


@pytest.fixture
def rule():
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its loss")
    return importlib.import_module("asnn_goose.kernels.kd_triton").TritonRule


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("vocabulary", [5, 16, 300])
def test_a_chunk_is_what_torch_makes_of_it(rule, vocabulary, wanted, kernel_device):
    generator = torch.Generator().manual_seed(vocabulary)
    student, teacher = (3 * torch.randn(4, vocabulary, generator=generator) for _ in range(2))
    labels = torch.randint(0, vocabulary, (9,), generator=generator)
    given = (labels, torch.arange(9) % 3 != 0, torch.arange(9) % 4 != 1)
    rows = slice(4, 8)
    results = []
    for kind, device in ((TorchRule, "cpu"), (rule, kernel_device)):
        space = ChunkSpace(4, vocabulary, torch.device(device), torch.float32, torch.float32, wanted, False)
        made = kind(plan(*(part.to(device) for part in given)), space)
        results.append(made(rows, student.clone().to(device), teacher.clone().to(device)))
    for expected, found in zip(*results, strict=True):
        if expected is None:
            assert found is None
        else:
            torch.testing.assert_close(found.cpu(), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_what_is_no_number_in_a_token_that_counts_stays_none(rule, kernel_device):
    space = ChunkSpace(2, 20, torch.device(kernel_device), torch.float32, torch.float32, True, False)
    everywhere = torch.ones(2, dtype=torch.bool, device=kernel_device)
    made = rule(plan(torch.zeros(2, dtype=torch.long, device=kernel_device), everywhere, everywhere), space)
    student = torch.randn(2, 20, device=kernel_device)
    student[1, 3] = torch.nan
    result = made(slice(0, 2), student, torch.randn(2, 20, device=kernel_device))
    assert result.loss.isnan()
    assert result.gradient[0].isfinite().all()
    assert result.gradient[1].isnan().any()


def test_one_models_logits_are_refused(rule, kernel_device):
    space = ChunkSpace(1, 20, torch.device(kernel_device), torch.float32, torch.float32, True, False)
    one = torch.ones(1, dtype=torch.bool, device=kernel_device)
    with pytest.raises(ValueError, match="use the torch backend"):
        rule(plan(torch.zeros(1, dtype=torch.long), one, one), space)(slice(0, 1), torch.zeros(1, 20), None)


def test_a_machine_without_triton_is_told_what_to_use_instead(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("kd_triton", "kd_triton_kernels"):
        monkeypatch.delitem(sys.modules, f"asnn_goose.kernels.{name}", raising=False)
    with pytest.raises(MachineError, match=r"needs triton.*choose the torch backend"):
        importlib.import_module("asnn_goose.kernels.kd_triton")
