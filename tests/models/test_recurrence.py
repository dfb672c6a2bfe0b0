import builtins
import importlib
import inspect
import logging
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from asnn_goose.errors import MachineError
from asnn_goose.kernels.reference import linear_scan_reference, recorded_scan
from asnn_goose.models import recurrence
from asnn_goose.models.recurrence import ScanBackend, linear_scan

# The influence is one product of at most 200 decays in float64: 200 roundings of 1e-16, far below.
INFLUENCE_TOLERANCE = 1e-9
# Two float32 orders of at most 20 additions.
FLOAT32_TOLERANCE = 1e-5
BACKENDS: tuple[ScanBackend, ...] = ("auto", "reference", "torch", "numba")
LAST = 200


def influence_error(scan: Callable[[Tensor, Tensor, Tensor], Tensor], decay: float, step: int) -> float:
    """Relative error of what adding 1 to k·v at `step` does to the state at 200, against decay**(200 - step)."""
    k = torch.zeros(1, LAST + 1, 1, dtype=torch.float64)
    k[0, step] = 1.0
    silent, one, rate = torch.zeros_like(k), torch.ones_like(k), torch.tensor([decay], dtype=torch.float64)
    moved = scan(k, one, rate)[0, LAST, 0] - scan(silent, one, rate)[0, LAST, 0]
    expected = decay ** (LAST - step)
    return abs(float(moved) - expected) / expected


def make_inputs(time: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(time)
    k, v = torch.randn(2, 3, time, 5, generator=generator)
    return k, v, torch.linspace(0.1, 0.99, 5), torch.randn(3, 5, generator=generator)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decay", [0.378, 0.9, 0.99])
@pytest.mark.parametrize("step", [0, 100, 190, 199, 200])
def test_influence_decays_exactly(backend, decay, step) -> None:
    if backend == "numba":
        pytest.importorskip("numba", reason="install the cpu extra to test the numba scan")

    def scan(k: Tensor, v: Tensor, rate: Tensor) -> Tensor:
        return linear_scan(k, v, rate, torch.zeros(1, 1, dtype=torch.float64), backend=backend)[0]

    assert influence_error(scan, decay, step) <= INFLUENCE_TOLERANCE


@pytest.mark.parametrize("decay", [0.378, 0.9])
@pytest.mark.parametrize("step", [199, 200])
def test_the_recorded_scan_breaks_the_influence_law(decay, step) -> None:
    assert influence_error(recorded_scan, decay, step) > 0.5


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("cut", [1, 9, 19])
def test_a_cut_sequence_with_the_state_carried_is_the_whole(backend, cut) -> None:
    k, v, decay, start = make_inputs(20)
    valid = torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.7
    whole, final = linear_scan(k, v, decay, start, valid, backend)
    first, carried = linear_scan(k[:, :cut], v[:, :cut], decay, start, valid[:, :cut], backend)
    second, last = linear_scan(k[:, cut:], v[:, cut:], decay, carried, valid[:, cut:], backend)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=0, atol=FLOAT32_TOLERANCE)
    torch.testing.assert_close(last, final, rtol=0, atol=FLOAT32_TOLERANCE)


def test_single_steps_equal_the_sequence() -> None:
    k, v, decay, start = make_inputs(20)
    doubles = [tensor.double() for tensor in (k, v, decay, start)]
    expected, state = linear_scan_reference(*doubles, None)[0], start
    for step in range(20):
        states, state = linear_scan(k[:, step : step + 1], v[:, step : step + 1], decay, state)
        torch.testing.assert_close(states[:, 0].double(), expected[:, step], rtol=0, atol=FLOAT32_TOLERANCE)


def test_the_state_is_float32_under_autocast_and_float64_for_float64() -> None:
    k, v, decay, start = make_inputs(7)
    with torch.autocast("cpu", torch.bfloat16):
        states, final = linear_scan(k.bfloat16(), v.bfloat16(), decay, start)
    assert states.dtype == final.dtype == torch.float32
    assert linear_scan(k.double(), v, decay, start)[0].dtype == torch.float64


def test_auto_takes_torch_where_numba_is_missing_and_says_so_once(monkeypatch, caplog) -> None:
    def refuse() -> None:
        raise MachineError("no numba here")

    monkeypatch.setattr(recurrence, "_numba_kernel", refuse)
    recurrence._first_importable.cache_clear()
    with caplog.at_level(logging.INFO, logger=recurrence.__name__):
        states, _ = linear_scan(*make_inputs(7))
        linear_scan(*make_inputs(7))
    recurrence._first_importable.cache_clear()
    assert torch.equal(states, linear_scan(*make_inputs(7), backend="torch")[0])
    assert [record.message for record in caplog.records] == ["linear scan on cpu: torch backend (no numba here)"]


def refuse_triton() -> None:
    raise MachineError("no triton here")


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (lambda: None, "linear scan on cuda: triton backend"),
        (refuse_triton, "linear scan on cuda: torch backend (no triton here)"),
    ],
)
def test_auto_takes_triton_on_a_gpu_where_it_can_be_imported_and_says_so_once(
    monkeypatch, caplog, kernel, message
) -> None:
    monkeypatch.setattr(recurrence, "_triton_kernel", kernel)
    recurrence._first_importable.cache_clear()
    with caplog.at_level(logging.INFO, logger=recurrence.__name__):
        chosen = {recurrence._fastest_backend("cuda", torch.float32) for _ in range(2)}
    recurrence._first_importable.cache_clear()
    assert [record.message for record in caplog.records] == [message]
    assert message.startswith(f"linear scan on cuda: {chosen.pop()} backend")


def test_auto_takes_torch_for_float64_on_a_gpu() -> None:
    assert recurrence._fastest_backend("cuda", torch.float64) == "torch"


def test_the_triton_backend_takes_bfloat16_and_equals_torch(kernel_device) -> None:
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its scan")
    k, v, decay, start = (tensor.to(kernel_device) for tensor in make_inputs(7))
    found, expected = (
        linear_scan(k.bfloat16(), v.bfloat16(), decay, start, backend=backend)[0] for backend in ("triton", "torch")
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32_TOLERANCE)


def test_triton_on_the_cpu_is_refused_where_nothing_interprets_it(monkeypatch) -> None:
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to test its scan")
    importlib.import_module("asnn_goose.kernels.scan_triton")
    monkeypatch.setattr("asnn_goose.kernels.scan_triton.INTERPRETED", False)
    with pytest.raises(ValueError, match=r"on a GPU, got k in torch\.float32 on cpu; use backend='torch'"):
        linear_scan(*make_inputs(7), backend="triton")


@pytest.mark.parametrize(("name", "position"), [("v", 1), ("decay", 2), ("initial_state", 3)])
def test_shapes_that_do_not_belong_together_are_refused(name, position) -> None:
    inputs = list(make_inputs(7))
    inputs[position] = inputs[position][..., :1]
    # Unwrapped, because the shape types of a test run would refuse first.
    with pytest.raises(ValueError, match=f"{name} must have shape"):
        inspect.unwrap(linear_scan)(*inputs)


def test_a_sequence_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        linear_scan(*make_inputs(0))


def test_numba_off_the_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="runs on cpu tensors, got meta"):
        linear_scan(*(tensor.to("meta") for tensor in make_inputs(7)), backend="numba")


def test_numba_asked_for_where_it_is_missing_says_how_to_install_it(monkeypatch) -> None:
    real_import = builtins.__import__

    def without_numba(name: str, *arguments, **keywords):
        if name == "numba":
            raise ImportError("No module named 'numba'")
        return real_import(name, *arguments, **keywords)

    for module in ("scan_numba", "numba_runtime"):
        monkeypatch.delitem(sys.modules, f"asnn_goose.kernels.{module}", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_numba)
    with pytest.raises(MachineError, match=r"asnn-goose\[cpu\]"):
        linear_scan(*make_inputs(7), backend="numba")
