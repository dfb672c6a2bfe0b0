"""What a membrane costs: the stateful encoder against the stateless one, forward and backward, correct first.

Ternary spikes in float32, on the GPU if there is one, else on the CPU; each encoder in the form that the package
chooses and in torch alone, where the membrane's loop is one of Python over time. The membrane's form is checked against
the loop in float64: spikes and gradients. Exit code 1 if it is wrong; speed decides nothing. The forms take turns, so
that all meet the same machine.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from asnn_goose.spikes import encoder, membrane
from asnn_goose.spikes.encoder import SpikeEncoder
from asnn_goose.spikes.membrane import MembraneSpec
from gpu_timing import gpu_us

SHAPES = {"cpu": (8, 256, 256), "cuda": (48, 512, 576)}
# The share of spikes that float32 sums move over an edge; each moves a few of those after it.
MOST_DIFFERING = 1e-4
# One gradient of a million, let through or cut off by rounding, is 1e-3 of their norm, and reaches back ten steps.
GRADIENT_TOLERANCE = 1e-2
WARM_UPS = 2
SPECS = {"no membrane": None, "membrane": MembraneSpec(), "membrane, reset detached": MembraneSpec(detach_reset=True)}


@contextmanager
def torch_alone() -> Iterator[None]:
    """As on a machine without numba and triton."""
    names = {encoder: ("_numba_encoder", "_triton_encoder"), membrane: ("_numba_form", "_triton_form")}
    with ExitStack() as stack:
        for module, functions in names.items():
            for name in functions:
                stack.enter_context(mock.patch.object(module, name, return_value=None))
        yield


FORMS = {"compiled": nullcontext, "torch": torch_alone}


def spikes_of(x: Tensor, spec: MembraneSpec | None) -> Tensor:
    """Ternary spikes with each token's own step."""
    values: Tensor = SpikeEncoder(x.shape[-1], amplitude="none", scale="token", membrane=spec)(x).values
    return values


def activations(shape: tuple[int, int, int], device: str) -> tuple[Tensor, Tensor]:
    """Activations and incoming gradients, the same random numbers each time."""
    generator = torch.Generator(device).manual_seed(0)
    return tuple(torch.randn(shape, generator=generator, device=device) for _ in range(2))  # type: ignore[return-value]


def outcome(x: Tensor, incoming: Tensor, spec: MembraneSpec | None) -> tuple[Tensor, Tensor]:
    """Spikes and the gradient of the activations."""
    leaf = x.detach().requires_grad_()
    values = spikes_of(leaf, spec)
    return values.detach(), torch.autograd.grad(values, leaf, incoming)[0]


def errors(shape: tuple[int, int, int], device: str, spec: MembraneSpec) -> tuple[float, float]:
    """The share of spikes that are not those of float64, and the gradient's error relative to its norm."""
    x, incoming = activations(shape, device)
    values, gradient = outcome(x, incoming, spec)
    with torch_alone():
        true_values, true_gradient = outcome(x.double(), incoming.double(), spec)
    differing = (values != true_values).double().mean()
    return float(differing), float((gradient - true_gradient).norm() / true_gradient.norm())


def cpu_us(work: Callable[[], object]) -> float:
    """Time of one run, in microseconds."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e6


def median_us(shape: tuple[int, int, int], device: str, repeats: int) -> dict[tuple[str, str], float]:
    """Median time of forward and backward, by encoder and form."""
    x, incoming = activations(shape, device)
    times = defaultdict[tuple[str, str], list[float]](list)
    # On a GPU one call already gives the median of its repeats.
    for _ in range(1 if device == "cuda" else repeats + WARM_UPS):
        for name, spec in SPECS.items():
            for form, alone in FORMS.items():
                with alone():
                    work = partial(outcome, x, incoming, spec)
                    times[name, form].append(gpu_us(work, repeats) if device == "cuda" else cpu_us(work))
    return {key: statistics.median(found[-repeats:]) for key, found in times.items()}


def main() -> int:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="timed runs of each form after warm-ups")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--shape", type=int, nargs=3, help="rows, steps and channels")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = tuple(options.shape or SHAPES[device])
    correct = True
    for name, spec in SPECS.items():
        if spec is not None:
            differing, error = errors(shape, device, spec)
            correct &= differing <= MOST_DIFFERING and error <= GRADIENT_TOLERANCE
            print(f"{name}: {differing:.1e} of the spikes differ from float64, gradient {error:.1e}")
    if not correct:
        return 1
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {options.threads} threads"
    table = Table(title=f"spike encoders, forward + backward, {' x '.join(map(str, shape))} float32, {where}")
    for column in ("encoder", "form", "us", "of the stateless one in this form"):
        table.add_column(column, justify="left" if column in ("encoder", "form") else "right")
    found = median_us(shape, device, options.repeats)
    for (name, form), taken in found.items():
        table.add_row(name, form, f"{taken:.0f}", f"{taken / found['no membrane', form]:.2f}")
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
