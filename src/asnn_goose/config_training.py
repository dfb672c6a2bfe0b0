"""How a student is trained: budget and optimizer, and the stages that share the budget."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from asnn_goose.config_objective import Objective
from asnn_goose.config_schedules import scaled
from asnn_goose.config_student import SpikeSite
from asnn_goose.config_text import Section, stated_fields

Precision = Literal["auto", "fp32", "bf16", "fp16"]
MomentDecay = Annotated[float, Field(ge=0.0, lt=1.0)]


class EarlyStopping(Section):
    """Stop when the evaluation perplexity has not fallen for a while."""

    patience_steps: int = Field(default=500, ge=1)
    """Steps without an improvement after which the run stops."""
    min_delta: float = Field(default=1.0, ge=0.0)
    """Smallest fall in perplexity that counts."""
    ends: Literal["stage", "run"] = "stage"
    """What it ends: the stage, after which the next one begins and counts anew, or, as recorded, the whole run."""


class TrainingOptions(Section):
    """What both budgets share."""

    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 8
    """Rows a micro-batch holds on each process; `auto` takes the largest that fits a GPU and still pays, 8 on a CPU."""
    accumulation: int = Field(default=1, ge=1)
    """Micro-batches a step sums over."""
    window: int = Field(default=256, ge=2)
    """Tokens a row holds."""
    learning_rate: float = Field(default=3e-4, gt=0.0)
    """Peak learning rate of AdamW."""
    copied_learning_rate: float | None = Field(default=None, gt=0.0)
    """Peak for weights taken over from the teacher; null is the same as for new ones."""
    warmup_steps: int = Field(default=50, ge=0)
    """Steps of linear warm-up."""
    warmup_from_zero: bool = False
    """As recorded, the first update of the warm-up has rate 0: step s of W takes s / W of the peak, not (s + 1) / W."""
    learning_rate_course: Literal["stage", "run"] = "stage"
    """Warm-up and cosine go over each stage, or once over the whole run, as recorded; a stage that ends early then
    leaves out its part."""
    learning_rate_floor: float = Field(default=0.0, ge=0.0, le=1.0)
    """End of the cosine as a share of the peak."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decay of what `decay` names."""
    decay: Literal["matrices", "all"] = "matrices"
    """`matrices` leaves norms, gains and other vectors alone; `all`, as recorded, decays every parameter."""
    betas: tuple[MomentDecay, MomentDecay] = Field(default=(0.9, 0.95), strict=False)
    """AdamW's moment decays."""
    clip_norm: float = Field(default=1.0, gt=0.0)
    """Largest gradient norm."""
    precision: Precision = "auto"
    """auto times bf16 and fp32 once and takes the faster."""
    compile: bool = False
    """Compile the student with torch.compile; where that fails it runs uncompiled and says so."""
    cuda_graphs: bool = False
    """On a GPU, record a micro-batch once and replay it: Python launches nothing any more, which small batches feel."""
    sharding: Literal["none", "fsdp2"] = "none"
    """Of several processes, each holds the whole student (none), or a share of its weights and moments (fsdp2)."""
    activation_checkpointing: bool = False
    """Keep only what enters each block, and compute the rest again in the backward: a third more arithmetic."""
    workers: int | None = Field(default=None, ge=0, le=64)
    """Processes that make batches ahead; null is 2 where a GPU trains, else none."""
    batches_ahead: int = Field(default=2, ge=1, le=64)
    """Batches that each worker makes ahead."""
    seed: int = Field(default=42, ge=0)
    """Seed of the weights and the order of the data."""
    logging_interval: int = Field(default=10, ge=1)
    """Steps between lines of metrics.jsonl."""
    evaluation_interval: int = Field(default=100, ge=1)
    """Steps between evaluations."""
    checkpoint_interval: int = Field(default=100, ge=1)
    """Steps between checkpoints."""
    early_stopping: EarlyStopping | None = None
    """Null trains the whole budget."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(default=(), strict=False)
    """Experiment trackers, each from its own package."""

    @model_validator(mode="after")
    def _weights_stay_in_place(self) -> "TrainingOptions":
        if self.cuda_graphs and self.sharding != "none":
            raise ValueError(
                f"training.cuda_graphs replays work on weights where they are, and training.sharding={self.sharding} "
                "moves them: set one of the two"
            )
        if self.cuda_graphs and self.precision == "fp16":
            raise ValueError("training.cuda_graphs does not go with fp16: use training.precision=bf16 or fp32")
        return self

    @property
    def rows(self) -> int:
        """`batch_size` as a number, which `auto` has become before a run trains.

        Raises:
            ValueError: It is still `auto`.
        """
        if self.batch_size == "auto":
            raise ValueError("training.batch_size=auto has not been resolved")
        return self.batch_size


class TrainingBySteps(TrainingOptions):
    """A budget in optimizer steps."""

    steps: int = Field(ge=1)
    """Optimizer steps done."""


class TrainingByTokens(TrainingOptions):
    """A budget in tokens."""

    tokens: int = Field(ge=1)
    """Tokens trained on, rounded up to whole steps."""


def training_tag(value: Any) -> str | None:
    """Which budget a mapping or model states: `steps` or `tokens`."""
    fields = stated_fields(value)
    stated = [key for key in ("steps", "tokens") if key in fields]
    return stated[0] if len(stated) == 1 else None


Training = Annotated[
    Annotated[TrainingBySteps, Tag("steps")] | Annotated[TrainingByTokens, Tag("tokens")],
    Discriminator(
        training_tag,
        custom_error_type="training_budget",
        custom_error_message="training needs exactly one budget, `steps` or `tokens`",
    ),
]


class LossPlateau(Section):
    """The training loss has stopped falling: its mean over the last steps against that over as many before."""

    steps: int = Field(default=300, ge=1)
    """Steps of each of the two means."""
    least_gain: float = Field(default=0.01, gt=0.0, lt=1.0)
    """Fraction by which the later mean must be below the earlier."""


class StageExit(Section):
    """Ends a stage before its budget is used, judged at evaluations, by the student's perplexity or the training loss.

    A relative error of hidden states would mislead: a small one can leave a large perplexity.
    """

    below_ratio: float | None = Field(default=None, gt=0.0)
    """Ends it once the student's perplexity is at most this multiple of the teacher's."""
    least_gain: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Ends it once an evaluation is below the one before by less than this fraction."""
    plateau: LossPlateau | None = None
    """Ends it once the training loss has stopped falling; null does not look at it."""


class SpikeRamp(Section):
    """Raises spikes at one site after another: what a site passes on goes from its activations to its spikes.

    With z the activations in units of their step, s their spikes and h rising from 0 to 1: (1 - h) * z + h * s. Sites
    that a later stage raises stay dense until then; those that no stage raises spike from the beginning.
    """

    sites: tuple[SpikeSite | Annotated[tuple[SpikeSite, ...], Field(strict=False)], ...] = Field(
        strict=False, min_length=1
    )
    """Sites in the order they are raised; a list within the list is raised together."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens over which all of them rise, each place for an equal part; null is the stage's whole budget."""

    @property
    def places(self) -> tuple[tuple[SpikeSite, ...], ...]:
        """The sites that rise together, place by place."""
        return tuple((place,) if isinstance(place, str) else place for place in self.sites)


class StageOptions(Section):
    """What every stage has; null takes the recipe's own."""

    share: float = Field(gt=0.0)
    """Part of the training budget that the stage gets, relative to the other stages' shares."""
    learning_rate: float | None = Field(default=None, gt=0.0)
    """Peak learning rate of new weights."""
    copied_learning_rate: float | None = Field(default=None, gt=0.0)
    """Peak for weights taken over from the teacher; null is the recipe's, then the stage's own learning_rate."""
    batch_size: int | None = Field(default=None, ge=1)
    """Rows a micro-batch holds on each process."""
    window: int | None = Field(default=None, ge=2)
    """Tokens a row holds."""
    part_weights: tuple[Annotated[float, Field(ge=0.0)], ...] | None = Field(default=None, strict=False)
    """Weight of each part of the recipe's mixture, 0 for none of it; null keeps the mixture's own."""
    exit: StageExit | None = None
    """Null uses the whole budget."""
    ramp: SpikeRamp | None = None
    """Null changes nothing about what spikes."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up at the stage's start; null is the recipe's, or under training.learning_rate_course=run
    none beside the run's own."""
    moments: Literal["fresh", "kept"] = "fresh"
    """AdamW's moments begin anew, or are those of the stage before for all weights that it trained too."""

    @model_validator(mode="after")
    def _ramps_end(self) -> "StageOptions":
        if self.ramp is not None and self.exit is not None:
            raise ValueError("exit would end the stage before its ramp: put the ramp into a stage without exit")
        return self


class AlignStage(StageOptions):
    """Each sublayer learns its teacher's alone, fed what that was fed: sum of |m - a|^2 over sum of |a|^2."""

    kind: Literal["align"]
    name: str = "align"
    """What metrics and results call the stage."""
    sublayers: Literal["mixers", "feed_forward", "all"] = "mixers"
    """Mixers, which learn attention, feed-forward parts, which may have to learn themselves anew as they spike, or
    both."""
    inputs: Literal["teacher", "student"] = "teacher"
    """`teacher` feeds each sublayer what its teacher's was fed, `student` what the student's sublayers before it have
    made of the stream, so that it learns to make up for their errors; then `sublayers` must be all."""
    train: Literal["sublayers", "new"] = "sublayers"
    """The weights of these sublayers, or only those that the teacher did not give."""

    @model_validator(mode="after")
    def _stream_needs_all_sublayers(self) -> "AlignStage":
        if self.inputs == "student" and self.sublayers != "all":
            raise ValueError(f"inputs=student needs sublayers=all, got {self.sublayers}: each feeds the next")
        return self


class DistillStage(StageOptions):
    """The student learns its teacher's predictions."""

    kind: Literal["distill"] = "distill"
    name: str = "distill"
    """What metrics and results call the stage."""
    train: Literal["all", "mixers", "new"] = "all"
    """All weights, those of the mixers, or only what the teacher did not give."""
    objective: Objective | None = None
    """What is minimized; null is the recipe's objective."""
    alignment_multiplier: float = Field(default=1.0, ge=0.0)
    """Factor on the weight of the objective's hidden alignment; 0 leaves it out."""
    transition: int = Field(default=0, ge=0)
    """Steps over which the objective's weights and its temperature, if both are fixed, go evenly from those of the
    stage before to its own; 0 changes them at once. What a stage has no more ends at once, what is new rises from 0."""

    def settled_objective(self, given: Objective) -> Objective:
        """What the stage minimizes, with a recipe's objective where it has none of its own."""
        objective = self.objective or given
        alignment = objective.hidden_alignment
        if alignment is None or self.alignment_multiplier == 1.0:
            return objective
        factor = self.alignment_multiplier
        lighter = alignment.model_copy(update={"weight": scaled(alignment.weight, factor)}) if factor else None
        return objective.model_copy(update={"hidden_alignment": lighter})


Stage = Annotated[AlignStage | DistillStage, Field(discriminator="kind")]


def shared_steps(shares: Sequence[float], steps: int) -> list[int]:
    """Steps of each share of a budget, at least one: those between its rounded borders, so that no step is lost."""
    whole = sum(shares)
    # Rounded before it is rounded: a third of 4.5 is 1.5, whichever way the sum went.
    borders = [round(round(done / whole * steps, 6)) for done in accumulate(shares, initial=0.0)]
    return [max(1, end - begin) for begin, end in pairwise(borders)]
