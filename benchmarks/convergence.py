"""Whether what makes a run fast changes what it learns: one recipe with all fast paths, and with none.

The plain run has torch alone: its recurrence, its loss, its encoders, nothing compiled, nothing replayed. Both runs
have one seed, one order of rows and one precision, so their losses differ by rounding alone, which thresholds turn into
other spikes; a third run, plain in float32, says how much rounding alone does. Exit code 1 if the loss of some ten
steps, or the last perplexity, leaves the band.
"""

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from accelerate.state import AcceleratorState
from rich.console import Console
from rich.table import Table

from asnn_goose.environment import collect_environment
from asnn_goose.kernels.kd_loss import distillation_sums
from asnn_goose.models import convolution, joint_linear
from asnn_goose.presets import load_recipe, recipe_yaml
from asnn_goose.run_dir import RunDirectory
from asnn_goose.spikes import encoder
from asnn_goose.training import step as step_module
from asnn_goose.training.distill import distill

BAND = 0.02
"""Relative difference of ten steps' mean loss, and of the last perplexity, that may be: on an H200 300 steps in
bfloat16 were off by 0.5 % on average, 1.0 % at most, and 0.1 % in the last perplexity."""
PLAIN = ("student.backend=torch", "teacher.compile=false", "training.compile=false", "training.cuda_graphs=false")
FAST = ("student.backend=auto", "teacher.compile=true", "training.compile=true", "training.cuda_graphs=true")


@contextmanager
def torch_alone() -> Iterator[None]:
    """Within it nothing but torch computes."""
    with ExitStack() as patches:
        patches.enter_context(mock.patch.dict(encoder.LEAST_WORTHWHILE, clear=True))
        patches.enter_context(mock.patch.dict(joint_linear.LEAST_TOKENS, clear=True))
        patches.enter_context(mock.patch.object(convolution, "_compiled_kernel", return_value=None))
        loss = partial(distillation_sums, backend="torch")
        patches.enter_context(mock.patch.object(step_module, "distillation_sums", loss))
        yield


class Trained(NamedTuple):
    """What a run left: its loss and its evaluation perplexity by step, and the median step's milliseconds."""

    loss: dict[int, float]
    perplexity: dict[int, float]
    step_ms: float


def trained(recipe: str, overrides: list[str], folder: Path, console: Console) -> Trained:
    """Run a recipe."""
    # accelerate keeps the precision of the run before.
    AcceleratorState._reset_state(reset_partial_state=True)
    settled = load_recipe(recipe, overrides)
    environment = {"recipe": recipe, **collect_environment(settled.training.seed)}
    run = RunDirectory.create(folder, recipe_yaml(settled), environment)
    distill(settled, run, console)
    lines = run.metrics()
    loss, perplexity = (
        {int(line["step"]): float(line[key]) for line in lines if key in line}
        for key in ("loss_nats", "evaluation_perplexity")
    )
    return Trained(loss, perplexity, statistics.median(line["step_ms"] for line in lines if "step_ms" in line))


def differences(found: Trained, expected: Trained) -> tuple[float, float, float]:
    """Relative: the largest of the loss at any logged step, that of the last loss, and of the last perplexity."""
    if found.loss.keys() != expected.loss.keys():
        raise SystemExit(f"the runs logged other steps: {list(found.loss)} and {list(expected.loss)}")
    figures = [*found.loss.values(), *found.perplexity.values()]
    if not all(map(math.isfinite, figures)):
        raise SystemExit("a loss or a perplexity is not finite")
    off = [abs(found.loss[step] / expected.loss[step] - 1) for step in expected.loss]
    last = max(expected.perplexity)
    return max(off), off[-1], abs(found.perplexity[last] / expected.perplexity[last] - 1)


def main() -> int:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="convert-pocket", help="a recipe's name or file")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of each run")
    parser.add_argument("--precision", default="bf16", help="of the fast run and of the plain one")
    parser.add_argument("--no-exact", action="store_true", help="leave out the plain run in float32")
    parser.add_argument("overrides", nargs="*", help="more of the recipe's fields, key.path=value")
    options = parser.parse_args()
    shared = [
        f"training.steps={options.steps}", "training.logging_interval=10", "training.evaluation_interval=100",
        "training.checkpoint_interval=1000", "controls=false", "samples=0", *options.overrides,
    ]  # fmt: skip
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        at = [*shared, f"training.precision={options.precision}"]
        fast = trained(options.recipe, [*at, *FAST], place / "fast", console)
        with torch_alone():
            plain = trained(options.recipe, [*at, *PLAIN], place / "plain", console)
            exact = None
            if not options.no_exact:
                in_float32 = [*shared, *PLAIN, "training.precision=fp32"]
                exact = trained(options.recipe, in_float32, place / "exact", console)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    title = f"{options.recipe}, {options.steps} steps, {options.precision}, {name}: off from the plain run by"
    table = Table(title=title)
    for column in ("run", "ten steps' loss, largest", "last loss", "last perplexity", "ms a step, median"):
        table.add_column(column, justify="left" if column == "run" else "right")
    worst = 0.0
    for label, run in (("plain", plain), ("fast", fast), ("plain, float32", exact)):
        if run is None:
            continue
        off = differences(run, plain)
        table.add_row(label, *(f"{part:.2%}" for part in off), f"{run.step_ms:.1f}")
        worst = max(off) if label == "fast" else worst
    console.print(table)
    console.print(f"band {BAND:.0%}: {'held' if worst <= BAND else 'left'}")
    return 0 if worst <= BAND else 1


if __name__ == "__main__":
    sys.exit(main())
