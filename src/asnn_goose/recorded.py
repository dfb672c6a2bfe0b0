"""The recorded line of notebooks that every run stands beside."""

from pydantic import Field

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


RECORDED_TEACHER_PERPLEXITY = 44.6
RECORDED_PERPLEXITIES = {
    "v6": 627.3,
    "v8": 559.0,
    "v9": 541.7,
    "v12.1": 445.61,
    "v13.1": 434.44,
    "v14": 424.81,
    "v14.1": 321.48,
    "v14.3": 307.70,
}
"""Recorded headline perplexities, all distilled from GPT-2 on WikiText-2."""


class Comparison(Record):
    """The recorded line, to stand beside this run."""

    recorded: tuple[RecordedRun, ...] = Field(
        default=tuple(
            RecordedRun(
                version=version,
                perplexity=perplexity,
                teacher_perplexity=RECORDED_TEACHER_PERPLEXITY,
                ratio_to_teacher=round(perplexity / RECORDED_TEACHER_PERPLEXITY, 2),
            )
            for version, perplexity in RECORDED_PERPLEXITIES.items()
        ),
        strict=False,
    )
    """Its runs, oldest first."""
    note: str = (
        "Recorded on WikiText-2's validation lines in windows of 256 with a stride of 128, after test-time "
        "training; only a run of the same teacher, text and protocol compares directly."
    )
    """What the comparison does not say by itself."""
