"""What a mixer does to its inputs on a CPU, compiled by numba against the same in torch: correct first, then timed.

Two operations, forward and backward, in float32: the short convolution behind the projections, and the spike encoder.
Each form is checked against torch in float64: values and every gradient, spikes exactly. Exit code 1 if any is wrong;
speed decides nothing. The forms take turns, so that both meet the same machine.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from asnn_goose.models import convolution
from asnn_goose.spikes import encoder
from asnn_goose.spikes.encoder import SpikeEncoder

BATCH, TIME, WIDTH, TAPS = 8, 256, 256, 4
# A gradient of the taps is a sum over 2,048 tokens in float32.
TOLERANCE = 1e-5
Operation = Callable[[list[Tensor]], Tensor]


def convolve(inputs: list[Tensor]) -> Tensor:
    """r, k and v side by side, convolved."""
    mixed, _ = convolution.short_convolution(*inputs)
    return mixed


def encode(inputs: list[Tensor]) -> Tensor:
    """Ternary spikes with each token's own step."""
    return SpikeEncoder(WIDTH, amplitude="none", scale="token")(inputs[0]).values


SHAPES = {"convolution": ((BATCH, TIME, 3 * WIDTH), (TAPS, 3 * WIDTH), (BATCH, TAPS - 1, 3 * WIDTH)),
          "spike encoder": ((BATCH, TIME, WIDTH),)}  # fmt: skip
OPERATIONS: dict[str, Operation] = {"convolution": convolve, "spike encoder": encode}


@contextmanager
def torch_alone() -> Iterator[None]:
    """As on a machine without numba."""
    with (
        mock.patch.object(convolution, "_compiled_kernel", return_value=None),
        mock.patch.object(encoder, "_numba_encoder", return_value=None),
    ):
        yield


def inputs(name: str, dtype: torch.dtype) -> list[Tensor]:
    """The same random numbers each time."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in SHAPES[name]]


def results(name: str, dtype: torch.dtype) -> list[Tensor]:
    """Value and all gradients for a fixed incoming one."""
    given = inputs(name, dtype)
    value = OPERATIONS[name](given)
    incoming = torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).to(value)
    return [value.detach().double(), *(part.double() for part in torch.autograd.grad(value, given, incoming))]


def largest_error(name: str, expected: list[Tensor]) -> float:
    """The largest deviation from float64, relative to the largest entry of the same tensor."""
    found = results(name, torch.float32)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def median_ms(name: str, repeats: int) -> tuple[float, float]:
    """Median times of torch and of the compiled form, taking turns after two warm-ups."""
    given = inputs(name, torch.float32)
    incoming = torch.randn_like(OPERATIONS[name](given))
    times: tuple[list[float], list[float]] = [], []

    def timed() -> float:
        start = time.perf_counter()
        torch.autograd.grad(OPERATIONS[name](given), given, incoming)
        return (time.perf_counter() - start) * 1e3

    for _ in range(repeats + 2):
        with torch_alone():
            times[0].append(timed())
        times[1].append(timed())
    return statistics.median(times[0][2:]), statistics.median(times[1][2:])


def main() -> int:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30, help="timed runs of each form after two warm-ups")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table(
        title=f"inputs of a mixer, forward + backward, {BATCH} x {TIME} x {WIDTH} float32, {options.threads} threads"
    )
    for column in ("operation", "torch ms", "numba ms", "times faster", "torch error", "numba error"):
        table.add_column(column, justify="left" if column == "operation" else "right")
    wrong = False
    for name in OPERATIONS:
        with torch_alone():
            expected = results(name, torch.float64)
            torch_error = largest_error(name, expected)
        error = largest_error(name, expected)
        wrong |= not max(error, torch_error) <= TOLERANCE
        before, after = median_ms(name, options.repeats)
        row = (name, f"{before:.2f}", f"{after:.2f}", f"{before / after:.1f}", f"{torch_error:.1e}", f"{error:.1e}")
        table.add_row(*row)
    Console().print(table)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
