"""When a run or a stage has reached its end before its budget has: no longer a better perplexity, or a better loss."""

from collections.abc import Mapping, Sequence
from typing import Any

from asnn_goose.config_training import EarlyStopping, LossPlateau, TrainingOptions

LOSSES = ("loss_nats", "relative_error")
"""What stages call what they minimize, in metrics.jsonl."""


def counts_as_better(stopping: EarlyStopping | None, reference: float | None, perplexity: float) -> bool:
    """Whether an evaluation undercuts the last one that counted by enough to count too."""
    return stopping is None or reference is None or perplexity < reference - stopping.min_delta


def patience_ended(stopping: EarlyStopping | None, since: int | None, stage_start: int, step: int) -> bool:
    """Whether so many steps have passed since the last evaluation that counted; each stage may begin to count anew."""
    if stopping is None or since is None:
        return False
    begun = max(since, stage_start) if stopping.ends == "stage" else since
    return step - begun >= stopping.patience_steps


def ends_run(reason: str, training: TrainingOptions) -> bool:
    """Whether what ended a stage ends the run, whatever stages are left."""
    stopping = training.early_stopping
    return reason == "early_stopping" and stopping is not None and stopping.ends == "run"


def on_plateau(plateau: LossPlateau | None, metrics: Sequence[Mapping[str, Any]], stage_start: int, step: int) -> bool:
    """Whether the stage's loss over its last steps is hardly below that over as many before, by its metrics.

    A line holds the mean loss of the steps since the line before it; lines count by their steps.
    """
    if plateau is None or step - stage_start < 2 * plateau.steps:
        return False
    sums = {"earlier": 0.0, "later": 0.0}
    counts = dict.fromkeys(sums, 0)
    before = stage_start
    for line in metrics:
        loss = next((line[name] for name in LOSSES if line.get(name) is not None), None)
        if loss is None or not stage_start < line["step"] <= step:
            continue
        steps, before = line["step"] - before, line["step"]
        age = step - line["step"]
        if age < 2 * plateau.steps:
            half = "later" if age < plateau.steps else "earlier"
            sums[half], counts[half] = sums[half] + steps * loss, counts[half] + steps
    if not all(counts.values()):
        return False
    earlier, later = (sums[half] / counts[half] for half in sums)
    return later > (1.0 - plateau.least_gain) * earlier
