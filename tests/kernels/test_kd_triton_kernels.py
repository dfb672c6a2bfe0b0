import importlib
import math

import pytest
import torch


@pytest.mark.parametrize("block", [16, 32])
def test_two_words_by_hand_and_nothing_written_beside_them(block, kernel_device):
    """Student logits (0, log 3), teacher logits (0, 0), at temperature 1; beside each row lie words of another."""
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its loss")
    kernels = importlib.import_module("asnn_goose.kernels.kd_triton_kernels")
    student = torch.tensor([[0.0, math.log(3), 50.0]])
    teacher, gradient = torch.tensor([[0.0, 0.0, 50.0]]), torch.full((1, 3), 7.0)
    figures, one = torch.full((1, 3), 7.0), torch.ones(1, dtype=torch.bool)
    tensors = [student, teacher, gradient, torch.ones(1, dtype=torch.long), one, one, figures, torch.tensor(1.0)]
    tensors = [part.to(kernel_device) for part in tensors]
    weights = [torch.tensor(weight, device=kernel_device) for weight in (1.0, 2.0)]
    kernels.rows_kernel[(1,)](
        *tensors, 2, 3, 3, 3, *weights, 0.5, kind="forward_kl", power=2, block=block, wants_gradient=True,
        wants_slope=False,
    )  # fmt: skip
    assert tensors[2].tolist() == [pytest.approx([0.25, -0.25, 7.0])]
    assert tensors[6][0, :2].tolist() == pytest.approx([0.5 * math.log(4 / 3), math.log(4 / 3)], rel=1e-6)
