"""The recorded line of notebooks that every run stands beside."""

from pydantic import Field

from asnn_goose.config_recorded import Recorded, recorded_line
from asnn_goose.measurements import Record


class RecordedRun(Record):
    """One run of the recorded line of notebooks."""

    version: str
    """Its name there."""
    perplexity: float
    """Its student's recorded perplexity."""
    teacher_perplexity: float
    """Its teacher's."""
    ratio_to_teacher: float
    """The one over the other."""


def successful_runs() -> tuple[RecordedRun, ...]:
    """Headlines of the versions that the record calls a success, all distilled from GPT-2 on WikiText-2."""
    return tuple(
        RecordedRun(
            version=facts.version,
            perplexity=facts.headline,
            teacher_perplexity=facts.teacher_perplexity,
            ratio_to_teacher=round(facts.headline / facts.teacher_perplexity, 2),
        )
        for facts in recorded_line()
        if facts.status == "success" and facts.headline is not None and facts.teacher_perplexity is not None
    )


class Comparison(Record):
    """The recorded line, to stand beside this run."""

    recorded: tuple[RecordedRun, ...] = Field(default_factory=successful_runs, strict=False)
    """Its runs, oldest first."""
    repeated: Recorded | None = None
    """What the record says of the version that this run repeats; null where it repeats none."""
    note: str = (
        "Recorded on WikiText-2's validation lines in windows of 256 with a stride of 128, after test-time "
        "training; only a run of the same teacher, text and protocol compares directly."
    )
    """What the comparison does not say by itself."""
