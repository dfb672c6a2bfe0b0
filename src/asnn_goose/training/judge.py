"""What a finished run is judged by: its checks, its health, and the recorded version that it repeats."""

from typing import Any

from asnn_goose.checks import Check, check, quotient
from asnn_goose.config import Recipe
from asnn_goose.evaluation.encoder_evidence import encoder_evidence
from asnn_goose.evaluation.run_evidence import RunEvidence
from asnn_goose.evaluation.sound_checks import further_checks
from asnn_goose.evaluation.student import student_perplexity
from asnn_goose.health import training_health
from asnn_goose.recorded import Comparison
from asnn_goose.report.finished_runs import previous_run
from asnn_goose.results import Results, SpikeResult
from asnn_goose.training.loop import TrainingLoop

SCALER_HALVINGS, SCALER_INTERVAL = 16, 2_000
"""A gradient scaler starts at 2^16, halves at each overflow, and doubles after so many steps without one."""
SHARE_TOLERANCE = 1e-6
"""Between two quotients of integers, the spike-fed share as measured and as planned: the smallest layer of a block of
SmolLM2-135M is 4e-5 of the whole."""


def judge(recipe: Recipe, loop: TrainingLoop, results: Results, metrics: list[dict[str, Any]]) -> Results:
    """The results with checks, the run's health, and what the record says of the version that it repeats.

    The student carries its best weights as they were read from disk.
    """
    material = loop.material
    ids = material.windows.probe(1).to(loop.accelerator.device)
    evidence = RunEvidence(
        recipe=recipe,
        results=results,
        metrics=metrics,
        encoders=encoder_evidence(material.student, ids),
        vocabulary=material.teacher.vocabulary_size,
        reloaded_perplexity=student_perplexity(material.student, material.windows, recipe.training.rows).perplexity,
    )
    every = run_checks(
        results.curves.perplexity.values,
        results.perplexities.best,
        results.counters.steps_skipped,
        results.spikes,
        allowed_skips(loop.state.precision, results.counters.steps_done),
    )
    return results.model_copy(
        update={
            "checks": (*every, *further_checks(evidence)),
            "health": training_health(metrics, previous_run(material.folder, results)),
            "comparison": Comparison(repeated=recipe.recorded),
        }
    )


def run_checks(
    evaluations: tuple[float | None, ...], best: float | None, skipped: int, spikes: SpikeResult, allowed: int = 0
) -> tuple[Check, ...]:
    """What every sound run passes: it learned, lost no step to non-finite numbers, and spikes are where they should."""
    untrained = evaluations[0] if evaluations else None
    measured, planned = spikes.measured_spike_fed_mac_share, spikes.spike_fed_mac_share
    off = None if measured is None or planned is None else abs(measured - planned)
    return (
        check("best perplexity over untrained perplexity", quotient(best, untrained), "<", 1.0),
        check("skipped steps", float(skipped), "<=", float(allowed)),
        check("measured spike-fed share of MACs, off the planned one by", off, "<=", SHARE_TOLERANCE),
    )


def allowed_skips(precision: str, steps: int) -> int:
    """Steps that a gradient scaler may skip on the search for its scale, which fp16 alone has."""
    return SCALER_HALVINGS + steps // SCALER_INTERVAL if precision == "fp16" else 0
