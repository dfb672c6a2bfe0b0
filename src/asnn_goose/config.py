"""What a run can be: frozen pydantic models, one per choice, that refuse every unknown key.

A recipe is a YAML document with the sections of `Recipe`. Each choice is a discriminated union, so a
field exists only where it has a meaning. Nothing here imports torch: a recipe is checked before any
heavy library is loaded. The sections stand in `config_text.py`, `config_student.py` and `config_training.py`, and what
the record says of a version in `config_recorded.py`.
"""

from typing import Literal

from pydantic import Field, model_validator

from asnn_goose.config_curriculum import Curriculum
from asnn_goose.config_objective import Objective
from asnn_goose.config_recorded import RecordedBlock
from asnn_goose.config_student import GooseStudent, Spikes, Student, WkvStudent, spike_sites
from asnn_goose.config_temperature import FixedTemperature
from asnn_goose.config_text import BLOCK_ROWS, Data, MixedText, Protocol, Section, StandardProtocol
from asnn_goose.config_training import DistillStage, Stage, Training, TrainingByTokens, shared_steps


class Teacher(Section):
    """The pretrained transformer that is distilled."""

    name: str = "gpt2"
    """A hub id, a local directory, a .gguf file, `pocket` (in the package), or `smollm2` (fetched once)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the teacher's weights; auto takes bfloat16 where this machine runs it faster."""
    compile: bool = False
    """Compile the teacher with torch.compile; where that fails it runs uncompiled and says so."""
    hidden_cache: bool = False
    """On one process, keep the teacher's last hidden states of every row that predictions are distilled on: later
    epochs need no more than its head. Takes as many numbers as tokens times the teacher's width."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Expected SHA-256 of a .gguf file; another file is refused."""


class Recipe(Section):
    """A whole run."""

    description: str = ""
    """What the recipe is for, in one line."""
    scale: Literal["full", "pocket", "smollm2"] = "full"
    """Which size a recipe of several was made at; the override `scale=` makes it (`scales.py`), this only names it."""
    teacher: Teacher = Teacher()
    data: Data
    student: Student = WkvStudent()
    spikes: Spikes = Spikes()
    objective: Objective = Objective()
    training: Training
    stages: tuple[Stage, ...] = Field(default=(), strict=False)
    """What shares the training budget, in order; without stages all of it distills into all weights."""
    curriculum: Curriculum | None = None
    """Null trains on all rows from the start."""
    evaluation: Protocol = StandardProtocol()
    controls: bool = False
    """Also measure the student with random weights, and as it is copied, before anything is fitted or trained."""
    samples: int = Field(default=3, ge=0, le=20)
    """Beginnings of held-out text that teacher and student continue side by side at the end."""
    recorded: RecordedBlock | None = None
    """What the record says of the version that the recipe repeats; a version's name stands for its block."""

    @model_validator(mode="after")
    def _stages_can_run(self) -> "Recipe":
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages have the names {', '.join(names)}: give each its own name")
        if any(stage.kind == "align" for stage in self.stages) and not isinstance(self.student, GooseStudent):
            raise ValueError("a stage of kind align needs student.mixer=goose, whose mixers stand in attention's place")
        return self

    @model_validator(mode="after")
    def _sites_exist(self) -> "Recipe":
        gate_rank = self.student.gate_rank if isinstance(self.student, GooseStudent) else 0
        spike_sites(self.spikes.sites, self.student.mixer, gate_rank)
        return self

    @model_validator(mode="after")
    def _borders_can_be_smooth(self) -> "Recipe":
        before: tuple[Stage | None, ...] = (None, *self.stages)
        for place, (earlier, stage) in enumerate(zip(before, self.stages, strict=False)):
            if isinstance(stage, DistillStage) and stage.transition and not isinstance(earlier, DistillStage):
                raise ValueError(
                    f"stages.{place}.transition={stage.transition} leads from the objective of the stage before, and "
                    "there is no distill stage before it: give 0"
                )
        return self

    @model_validator(mode="after")
    def _numbers_may_move(self) -> "Recipe":
        moved = [f"stages.{place}.transition" for place, stage in enumerate(self.stages)
                 if isinstance(stage, DistillStage) and stage.transition]  # fmt: skip
        if self.curriculum is not None and self.curriculum.temperatures is not None:
            moved.append("curriculum.pacing.temperatures")
        if moved and self.training.cuda_graphs:
            raise ValueError(
                f"{moved[0]} changes numbers that training.cuda_graphs=true has recorded: set cuda_graphs to false"
            )
        return self

    @model_validator(mode="after")
    def _rows_can_be_ordered(self) -> "Recipe":
        if self.curriculum is None:
            return self
        if isinstance(self.data, MixedText):
            raise ValueError("curriculum orders the rows of one text: drop it, or take another data than a mixture")
        others = [f"stages.{place}.window" for place, stage in enumerate(self.stages)
                  if stage.window not in (None, self.training.window)]  # fmt: skip
        if others:
            raise ValueError(f"curriculum orders rows of training.window={self.training.window}: drop {others[0]}")
        own = any(isinstance(stage, DistillStage) and (stage.objective or stage.transition) for stage in self.stages)
        fixed = isinstance(self.objective.temperature, FixedTemperature)
        if self.curriculum.temperatures is not None and (own or not fixed):
            raise ValueError(
                "curriculum.pacing.temperatures set the temperature of the whole run: give objective.temperature.kind="
                "fixed and stages without objective and transition, or null"
            )
        return self

    @model_validator(mode="after")
    def _weights_are_the_parts(self) -> "Recipe":
        for place, weights in enumerate(stage.part_weights for stage in self.stages):
            if weights is None:
                continue
            if not isinstance(self.data, MixedText):
                raise ValueError(f"stages.{place}.part_weights weighs the parts of data.source=mixture: drop it")
            parts, used = len(self.data.parts), [weight for weight in weights if weight > 0]
            if len(weights) != parts or not used or min(used) < sum(used) / BLOCK_ROWS:
                raise ValueError(
                    f"stages.{place}.part_weights={list(weights)}: give one weight for each of data.parts ({parts}), "
                    f"0 or at least 1/{BLOCK_ROWS} of their sum, and not 0 for all"
                )
        return self

    @model_validator(mode="after")
    def _what_is_cached_suffices(self) -> "Recipe":
        if self.teacher.hidden_cache and self.follows_hidden_states:
            raise ValueError(
                "teacher.hidden_cache=true keeps what the teacher's head reads, and objective.hidden_alignment, "
                "feature_dynamics and semantic compare what stands between its blocks: drop one of the two"
            )
        return self

    @model_validator(mode="after")
    def _hidden_states_correspond(self) -> "Recipe":
        converted = isinstance(self.student, GooseStudent) and self.student.initialization == "teacher"
        alignments = [objective.hidden_alignment for objective in self.objectives]
        if not converted and any(one is not None and one.layer_map.kind == "block" for one in alignments):
            raise ValueError(
                "objective.hidden_alignment needs a student whose blocks stand for the teacher's: student.mixer=goose "
                "with student.initialization=teacher; or give it layer_map.kind=uniform, or drop it"
            )
        return self

    @model_validator(mode="after")
    def _spikes_can_mean_something(self) -> "Recipe":
        if all(objective.semantic is None for objective in self.objectives):
            return self
        sites = spike_sites(self.spikes.sites, self.student.mixer, 0) if self.student.mixer == "wkv" else ()
        if not {"k", "v"} <= set(sites) or self.spikes.encoder == "dense":
            raise ValueError(
                "objective.semantic compares spikes of k and v as wide as the stream: it needs student.mixer=wkv with "
                "k and v among spikes.sites, and an encoder other than dense; or drop it"
            )
        return self

    @model_validator(mode="after")
    def _windows_fit_positions(self) -> "Recipe":
        longest = max(self.windows.values())
        if isinstance(self.student, GooseStudent):
            # Its positions are the teacher's, which are known when the teacher is loaded.
            return self
        if self.student.positions == "learned" and longest > self.student.max_positions:
            raise ValueError(
                f"windows of {longest} tokens need student.max_positions >= {longest}, got {self.student.max_positions}"
            )
        return self

    @model_validator(mode="after")
    def _ramps_fit(self) -> "Recipe":
        ramps = [stage.ramp for stage in self.stages if stage.ramp is not None]
        raised = [site for ramp in ramps for place in ramp.places for site in place]
        twice = next((site for site in raised if raised.count(site) > 1), None)
        if twice is not None:
            raise ValueError(f"stages raise the site {twice} more than once: name it in one ramp, once")
        if ramps and (self.spikes.scale != "token" or self.spikes.surrogate.kind == "recorded_ste"):
            raise ValueError(
                "a stage's ramp blends activations with spikes of their size: it needs spikes.scale=token and a "
                "surrogate other than recorded_ste"
            )
        for place, stage in enumerate(self.stages):
            budget, tokens = self._tokens_of(stage), None if stage.ramp is None else stage.ramp.tokens
            if budget is not None and tokens is not None and tokens > budget:
                raise ValueError(
                    f"stages.{place}.ramp.tokens={tokens} is longer than its stage, which has {budget:,} tokens: give "
                    f"{budget} or fewer, or raise the budget"
                )
        return self

    def _tokens_of(self, stage: Stage) -> int | None:
        """Tokens of a stage's budget, where one process trains; None while the batch size is not known."""
        training, shares = self.training, [other.share for other in self.stages]
        if isinstance(training, TrainingByTokens):
            return round(stage.share / sum(shares) * training.tokens)
        rows = stage.batch_size or training.batch_size
        if rows == "auto":
            return None
        steps = shared_steps(shares, training.steps)[self.stages.index(stage)]
        return steps * rows * training.accumulation * (stage.window or training.window)

    @property
    def follows_hidden_states(self) -> bool:
        """Whether some stage compares hidden states with the teacher's."""
        return any(objective.follows_hidden_states for objective in self.objectives)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What each stage that distills minimizes, in order."""
        stages: tuple[Stage, ...] = self.stages or (DistillStage(share=1.0),)
        return tuple(stage.settled_objective(self.objective) for stage in stages if isinstance(stage, DistillStage))

    @property
    def windows(self) -> dict[str, int]:
        """Every number of tokens that a row or an evaluation window of the run holds, by its key."""
        stages = {f"stages.{place}.window": stage.window for place, stage in enumerate(self.stages) if stage.window}
        return {"training.window": self.training.window, **stages, "evaluation.window": self.evaluation.window}
