"""What a mixer does to its inputs, in one pass against the same in torch: correct first, then timed.

On a CPU, numba does two operations, forward and backward, in float32: the short convolution behind the projections, and
the spike encoder. On a GPU, Triton does all that stands between projections and recurrence, in bfloat16, against eager
and compiled torch. Each form is checked against torch in float64: values and every gradient. Exit code 1 if any is
wrong; speed decides nothing. The forms take turns, so that all meet the same machine.
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

from asnn_goose.models import convolution, fused_inputs
from asnn_goose.models.goose_mixer import GooseMixer, GooseShape
from asnn_goose.models.rotary import RotaryPositions
from asnn_goose.spikes import encoder
from asnn_goose.spikes.encoder import SpikeEncoder
from gpu_timing import gpu_us

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


# On a GPU: a step's tokens, and the sizes of SmolLM2-135M.
ROWS, TOKENS, HEADS, WIDTH_OF_HEAD = 48, 512, (9, 3), 64
# One spike in a thousand may fall on the other side of its threshold: results and gradients are rounded to bfloat16.
GPU_TOLERANCE = 3e-2


class MixerPart:
    """A mixer between its projections and its recurrence, on fixed projections."""

    def __init__(self, dtype: torch.dtype, rows: int = ROWS) -> None:
        torch.manual_seed(0)
        read, state = (heads * WIDTH_OF_HEAD for heads in HEADS)
        encoders = {site: SpikeEncoder(state, amplitude="none", scale="token") for site in "kv"}
        rotary = RotaryPositions(tuple(10_000 ** (-pair / 32) for pair in range(32)))
        self.mixer = GooseMixer(GooseShape(read, *HEADS, WIDTH_OF_HEAD), encoders, rotary).to("cuda")
        torch.nn.init.normal_(self.mixer.taps, std=0.5)
        self.mixer.to(torch.float64 if dtype == torch.float64 else torch.float32)
        self.projected = (
            torch.randn(rows, TOKENS, read + 2 * state, device="cuda").bfloat16().to(dtype).requires_grad_()
        )
        x = torch.zeros(rows, 1, read, device="cuda", dtype=self.mixer.taps.dtype)
        self.memory = self.mixer.initial_memory(x)
        self.tables = rotary.tables(torch.arange(TOKENS, device="cuda").expand(rows, -1), x.dtype)

    def plain(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r, k and v in torch, for torch.compile to read."""
        shape = self.mixer.shape
        parts, _, _ = self.mixer._plain_inputs(projected, self.memory, None, self.tables)
        r, k, v = (part.to(projected.dtype).unflatten(-1, (-1, shape.head_width)) for part in parts)
        return r.unflatten(2, (shape.key_value_heads, -1)), k, v

    def fused(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `plain` by the operator."""
        shape, mixer = self.mixer.shape, self.mixer
        heads = shape.heads, shape.key_value_heads, shape.head_width
        tail, encoders = self.memory.shift, mixer.encoders
        parts, _, _ = fused_inputs.fused_inputs(
            projected, mixer.taps, tail, self.tables, heads, encoders, projected.dtype
        )
        r, k, v = (part.unflatten(-1, (-1, shape.head_width)) for part in parts)
        return r.unflatten(2, (shape.key_value_heads, -1)), k, v

    def outcome(self, form: Callable[[Tensor], tuple[Tensor, ...]]) -> list[Tensor]:
        """Values and gradients for fixed incoming ones, in float64."""
        made = form(self.projected)
        incoming = [torch.sin(torch.arange(part.numel(), device="cuda").double()).view(part.shape) for part in made]
        gradients = torch.autograd.grad(
            made,
            [self.projected, self.mixer.taps],
            [given.to(part) for given, part in zip(incoming, made, strict=True)],
        )
        return [part.detach().double() for part in (*made, *gradients)]


def gpu_part(repeats: int, compiled: bool) -> bool:
    """Check and time all forms on the GPU; whether the operator is right."""
    expected = MixerPart(torch.float64, rows=2)
    checked = MixerPart(torch.bfloat16, rows=2)
    truth, found = expected.outcome(expected.plain), checked.outcome(checked.fused)
    errors = [float((one - true).norm() / true.norm()) for one, true in zip(found, truth, strict=True)]
    print(
        "relative errors of r, k, v and the gradients of projections and taps: " + " ".join(f"{e:.1e}" for e in errors)
    )
    part = MixerPart(torch.bfloat16)
    forms = {"torch": part.plain, "torch, compiled": torch.compile(part.plain, dynamic=False), "triton": part.fused}
    if not compiled:
        del forms["torch, compiled"]
    table = Table(title=f"inputs of a mixer, {ROWS} x {TOKENS}, {HEADS} heads of {WIDTH_OF_HEAD}, bfloat16, "
                        f"{torch.cuda.get_device_name()}")  # fmt: skip
    for column in ("form", "forward us", "faster", "GB/s", "backward us", "faster", "GB/s"):
        table.add_column(column, justify="left" if column == "form" else "right")
    one_way = 2 * part.projected.numel() * part.projected.element_size()
    baseline: list[float] = []
    leaves = [part.projected, part.mixer.taps]
    for name, form in forms.items():
        made = form(part.projected)
        incoming = [torch.randn_like(output) for output in made]
        with torch.no_grad():
            forward = gpu_us(lambda form=form: form(part.projected), repeats)
        backward = gpu_us(
            lambda made=made, given=incoming: torch.autograd.grad(made, leaves, given, retain_graph=True), repeats
        )
        baseline = baseline or [forward, backward]
        cells = [name]
        # Backward, projections and arriving gradients are read and one gradient is written.
        for first, taken, moved in zip(baseline, (forward, backward), (one_way, 1.5 * one_way), strict=True):
            cells += [f"{taken:.1f}", f"{first / taken:.2f}", f"{moved / taken / 1e3:.0f}"]
        table.add_row(*cells)
    Console(width=120).print(table)
    return max(errors) <= GPU_TOLERANCE


def main() -> int:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30, help="timed runs of each form after two warm-ups")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--no-compile", action="store_true", help="leave compiled torch out on a GPU")
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
    if torch.cuda.is_available():
        wrong |= not gpu_part(options.repeats, not options.no_compile)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
