"""What the record says of each version of the recorded line: the `recorded:` block of a recipe, and where it is kept.

The facts stand once, in `recipes/recorded/<version>.yaml`; a recipe names its version (`recorded: v14.3`), and the
resolved recipe holds the whole block.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator
from ruamel.yaml import YAML

from asnn_goose.config_text import Section

RecordedVersion = Literal[
    "v4", "v5", "v6", "v7", "v8", "v9", "v9.1", "v10", "v10-512x8", "v11", "v11.1", "v11a", "v11.1a", "v11.2a", "v12",
    "v12.1", "v13", "v13.1", "v14", "v14.1", "v14.2", "v14.3", "v15", "v15r",
]  # fmt: skip
"""The versions in their order. Plain v11 and v11.1 are the channel-wise ones; a suffix `a` marks the archived line."""

RECORDED_VERSIONS: tuple[RecordedVersion, ...] = get_args(RecordedVersion)
RECORDED_CAP = 22026.0
"""exp(10), the largest perplexity that the record can show: such a figure says `at least`."""

CheckList = Literal["v6", "v8", "v9", "v11a", "v11.1a", "v12.1", "v14"]
Status = Literal["success", "failed", "bug", "baseline", "reference", "planned", "implemented", "blocked"]
Pair = Annotated[tuple[int, float], Field(strict=False)]
Course = Annotated[tuple[Pair, ...], Field(strict=False)]
"""Pairs of a step and a value."""
Names = Annotated[tuple[str, ...], Field(strict=False)]
Ends = Annotated[tuple[float, float], Field(strict=False)]


class RecordedTarget(Section):
    """What the version was to reach."""

    least: float | None = None
    """Lower end of the student's perplexity, where a range was given."""
    below: float | None = None
    """Upper end of the student's perplexity."""
    met: bool | None = None
    """Whether it was; null where nobody said and no figure tells."""
    note: str = ""
    """A target that is no perplexity of the student, or a remark."""


class RecordedSize(Section):
    """The student's size, with GPT-2's 50,257 words, 256 positions and a tied head."""

    width: int
    layers: int
    parameters: int
    """Exact, computed from the shape."""
    stated: str | None = None
    """As the record has it, which is wrong for some versions."""


class RecordedBest(Section):
    """The lowest of the periodic evaluations."""

    perplexity: float
    step: int


class RecordedTemperature(Section):
    """The distillation temperature over the run; null is not recorded."""

    start: float | None = None
    end: float | None = None
    path: Course = ()
    """Steps and temperatures in between."""
    note: str = ""


class RecordedChecks(Section):
    """The version's own validation tests."""

    list: CheckList
    """The list that runs of the version are checked by."""
    exist: int | None = None
    """How many there were; null where no list of the version's own is recorded."""
    passed: int | None = None
    """How many passed; null where no count is recorded."""


class RecordedSpikeValidation(Section):
    """What the version's spike validation found, by estimators that are known to be unsound."""

    dead_fraction: float
    """Share of channels that spiked at less than one token in a thousand."""
    information_bits: float
    """Mutual information of spikes and teacher states."""
    cka: float
    """Linear CKA of spikes and teacher states, from 0 to 1."""


class OtherRun(Section):
    """A second run of the same version."""

    name: str
    status: Status
    headline: float
    temperature_end: float | None = None
    minutes: float | None = None
    spike_validation: RecordedSpikeValidation | None = None
    lesson: str


class Recorded(Section):
    """What the record says of one version; null is recorded nowhere.

    Perplexities are on the recorded protocol, on WikiText-2's validation lines, and compare with nothing else.
    """

    version: RecordedVersion
    date: str | None = Field(default=None, pattern=r"^\d{4}-\d{2}-\d{2}$")
    """Day of the run, as YYYY-MM-DD."""
    status: Status
    """What the record calls it."""
    archived: bool = False
    """Whether it belongs to the archived line."""
    target: RecordedTarget | None = None
    size: RecordedSize | None = None
    teacher_perplexity: float | None = None
    best: RecordedBest | None = None
    headline: float | None = None
    """Perplexity after test-time training on the last weights, which is the figure that the record compares by."""
    stop_step: int | None = None
    """Optimizer step of the end."""
    trajectory: Course = ()
    """Steps and perplexities of periodic evaluations."""
    temperature: RecordedTemperature | None = None
    lambda_path: Course = ()
    """Steps and factors of the temperature's reversed gradient."""
    feature_dynamics: Ends | None = None
    """First and last loss of feature dynamics."""
    density: float | None = None
    """Fraction of spikes that are not 0, at the end."""
    amplitudes: Ends | None = None
    """Smallest and largest amplitude at the end."""
    tokens: int | None = None
    """Tokens trained on."""
    memory_gb: float | None = None
    """Memory in use on the GPU."""
    minutes: float | None = None
    device: str | None = None
    spike_validation: RecordedSpikeValidation | None = None
    checks: RecordedChecks | None = None
    other_runs: Annotated[tuple[OtherRun, ...], Field(strict=False)] = ()
    lesson: str = ""
    """What the record concludes, which need not be so; empty where it says nothing."""
    approximate: Names = ()
    """Fields that the record gives as `about`."""
    public: Names = ()
    """Fields that are known from the public repository."""
    computed: Names = ()
    """Fields that are recorded nowhere and follow from others by computation."""
    note: str = ""
    """What of the recipe is known from the public repository, or was chosen, and what a figure does not say itself."""

    @model_validator(mode="after")
    def _named_fields_exist(self) -> "Recorded":
        for name in (*self.approximate, *self.public, *self.computed):
            if name.split(".")[0] not in type(self).model_fields:
                raise ValueError(
                    f"recorded: {name!r} is no field of a recorded block; see `asnn-goose presets --schema`"
                )
        return self

    @property
    def ratio_to_teacher(self) -> float | None:
        """The headline over the teacher's perplexity."""
        if self.headline is None or self.teacher_perplexity is None:
            return None
        return self.headline / self.teacher_perplexity

    @property
    def is_capped(self) -> bool:
        """Whether the headline is the largest figure that the record can show."""
        return self.headline is not None and self.headline >= RECORDED_CAP


@cache
def recorded_facts(version: RecordedVersion) -> Recorded:
    """The record of one version."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.version = (1, 2)
    text = files("asnn_goose").joinpath("recipes", "recorded", f"{version}.yaml").read_text(encoding="utf-8")
    return Recorded.model_validate_json(json.dumps(yaml.load(text)))


def recorded_line() -> tuple[Recorded, ...]:
    """Every version, oldest first."""
    return tuple(recorded_facts(version) for version in RECORDED_VERSIONS)


def _block_of_version(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in RECORDED_VERSIONS:
        raise ValueError(
            f'recorded: expected a version of the recorded line ({", ".join(RECORDED_VERSIONS)}), got "{value}"'
        )
    return recorded_facts(value)


RecordedBlock = Annotated[
    Recorded, BeforeValidator(_block_of_version, json_schema_input_type=Recorded | RecordedVersion)
]
"""A recorded block, or the version whose block it is."""
