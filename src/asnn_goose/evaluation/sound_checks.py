"""What every run has to pass, whatever it repeats: its checkpoint is its student, and what learns does learn."""

from asnn_goose.checks import Check, check, check_between, quotient
from asnn_goose.evaluation.recorded_checks import recorded_checks
from asnn_goose.evaluation.run_evidence import FEATURE_DYNAMICS, TEMPERATURE, RunEvidence, mean_of

RELOAD_TOLERANCE = 1e-5
"""Between two evaluations of the same weights: sums may be taken in another order, nothing else may differ."""
LEAST_MOVE = 0.01
"""Change of a learned temperature below which it did not learn: weight decay alone moves it by a tenth of that."""


def further_checks(evidence: RunEvidence) -> tuple[Check, ...]:
    """The checks of every run, those of what it learns besides, and those of the version that it repeats."""
    return (
        reloads(evidence),
        no_better_than_teacher(evidence),
        *temperature_learned(evidence),
        *feature_dynamics_fell(evidence),
        *amplitudes_differ(evidence),
        *recorded_checks(evidence),
    )


def reloads(evidence: RunEvidence) -> Check:
    """The best checkpoint, read again, has the perplexity that it was saved for."""
    found = quotient(evidence.reloaded_perplexity, evidence.results.student.perplexity)
    off = None if found is None else abs(found - 1.0)
    return check("best checkpoint read again, its perplexity off by", off, "<=", RELOAD_TOLERANCE)


def no_better_than_teacher(evidence: RunEvidence) -> Check:
    """A student that beats its teacher says that the teacher does not know this text: a warning."""
    return check("student's perplexity over the teacher's", evidence.results.ratio.to_teacher, ">=", 1.0, warns=True)


def temperature_learned(evidence: RunEvidence) -> tuple[Check, ...]:
    """A temperature that learns stayed off its bounds and moved; no checks where it does not learn."""
    bounds = evidence.temperature_bounds
    if bounds is None:
        return ()
    found, (lower, upper) = evidence.values(TEMPERATURE), bounds
    nearest = min(found, key=lambda value: min(value - lower, upper - value), default=None)
    moved = max(found) - min(found) if found else None
    return (
        check_between("temperature nearest to a bound", nearest, lower, upper, ends=False),
        check("temperature moved by", moved, ">", LEAST_MOVE),
    )


def feature_dynamics_fell(evidence: RunEvidence) -> tuple[Check, ...]:
    """The loss of feature dynamics fell from its first five values to its last five; no check where it took no part."""
    found = [value for value in evidence.values(FEATURE_DYNAMICS) if value > 0.0]
    if not found:
        return ()
    return (
        check("feature dynamics' loss, last over first", quotient(mean_of(found[-5:]), mean_of(found[:5])), "<", 1.0),
    )


def amplitudes_differ(evidence: RunEvidence) -> tuple[Check, ...]:
    """Amplitudes of k and v are not the same number twice; no check where there are none.

    A warning: the product of both is all that acts, so that a difference adds nothing but would show that it learned.
    """
    gap = evidence.encoders.amplitude_gap
    return () if gap is None else (check("amplitudes of k and v differ by", gap, ">", 0.0, warns=True),)
