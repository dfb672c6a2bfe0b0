import pytest
import torch

from asnn_goose.errors import ConfigError
from asnn_goose.training import precision
from asnn_goose.training.precision import matmul_speedup, resolve_precision, resolve_teacher_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_what_is_asked_for_is_taken(asked: str) -> None:
    assert resolve_precision(asked, CPU) == asked


def test_fp16_without_a_gpu_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="use auto, bf16 or fp32"):
        resolve_precision("fp16", CPU)


@pytest.mark.parametrize(("speedup", "expected"), [(3.0, "bf16"), (1.1, "fp32"), (0.3, "fp32")])
def test_auto_takes_bf16_only_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, speedup: float, expected: str
) -> None:
    monkeypatch.setattr(precision, "matmul_speedup", lambda dtype, device: speedup)
    assert resolve_precision("auto", CPU) == expected


def test_a_dtype_is_about_as_fast_as_itself() -> None:
    assert 0.2 < matmul_speedup(torch.float32, CPU) < 5.0


def test_the_teacher_follows_the_run_unless_told_otherwise() -> None:
    assert resolve_teacher_dtype("auto", "bf16") is torch.bfloat16
    assert resolve_teacher_dtype("float32", "bf16") is torch.float32
