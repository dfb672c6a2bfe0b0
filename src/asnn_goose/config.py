"""What a run can be: frozen pydantic models, one per choice, that refuse every unknown key.

A recipe is a YAML document with the sections of `Recipe`. Each choice is a discriminated union, so a
field exists only where it has a meaning. Nothing here imports torch: a recipe is checked before any
heavy library is loaded. The choices about text stand in `config_text.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from asnn_goose.config_text import Data, Protocol, Section, StandardProtocol, stated_fields

Precision = Literal["auto", "fp32", "bf16", "fp16"]
SpikeSite = Literal["k", "v"]
MomentDecay = Annotated[float, Field(ge=0.0, lt=1.0)]


class Teacher(Section):
    """The pretrained transformer that is distilled."""

    name: str = "gpt2"
    """A hub id, a local directory, a .gguf file, `pocket` (in the package), or `smollm2` (fetched once)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number type of the teacher's weights; auto takes bfloat16 where this machine runs it faster."""
    compile: bool = False
    """Compile the teacher with torch.compile; where that fails it runs uncompiled and says so."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Expected SHA-256 of a .gguf file; another file is refused."""


class WkvStudent(Section):
    """A student whose mixer keeps one number a channel: S_t = d * S_{t-1} + k_t * v_t."""

    mixer: Literal["wkv"] = "wkv"
    initialization: Literal["random", "teacher"] = "random"
    """`teacher` copies embeddings, norms and feed-forward parts; the shape below must then be the teacher's."""
    width: int = Field(default=768, ge=1)
    """Width of the residual stream."""
    layers: int = Field(default=5, ge=1)
    """Number of blocks."""
    feedforward_width: int | None = Field(default=None, ge=1)
    """Inner width of the feed-forward part; null is 4 x width."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalization before each sublayer and before the head."""
    mlp: Literal["silu", "gelu", "swiglu"] = "silu"
    """Feed-forward form."""
    positions: Literal["learned", "none"] = "learned"
    """Position embedding; `none` leaves order to the recurrence."""
    max_positions: int = Field(default=1024, ge=1)
    """Longest sequence of learned positions, in tokens."""
    tie_head: bool = True
    """Use the token embedding as the output head."""
    decay_init: Literal["spread", "recorded"] = "spread"
    """`spread`: timescales of 1 to 1000 tokens across channels; `recorded`: sigmoid(-0.5) everywhere."""
    mix_init: Literal["spread", "recorded"] = "spread"
    """Token-shift mix: `spread` across channels, or `recorded`, 1 - layer/(layers - 1)."""
    recurrence: Literal["exact", "recorded"] = "exact"
    """`recorded` runs the old notebooks' scan, which forgets after about 25 tokens."""
    backend: Literal["auto", "reference", "torch", "numba"] = "auto"
    """Implementation of the exact recurrence."""


class GooseStudent(Section):
    """A student with a matrix state for each head, in the shape of its teacher: the form for conversion."""

    mixer: Literal["goose"]
    initialization: Literal["teacher", "random"] = "teacher"
    """`teacher` copies everything that attention and recurrence share; `random` keeps the shape alone, as a control."""
    keep_layers: Literal["all", "every_other"] | Annotated[int, Field(ge=1)] | tuple[int, ...] = "all"
    """The teacher's blocks that are kept: every other, a number of evenly spaced ones, or their indices from 0."""
    positions: Literal["teacher", "none"] = "teacher"
    """`none` drops the teacher's positions and leaves order to the recurrence."""
    convolution: int = Field(default=4, ge=1, le=16)
    """Taps of the causal convolution behind r, k and v; 1 is none."""
    gate_rank: int = Field(default=32, ge=0)
    """Rank of the output gate; 0 is no gate."""
    backend: Literal["auto", "reference", "torch"] = "auto"
    """Implementation of the recurrence."""


Student = Annotated[WkvStudent | GooseStudent, Field(discriminator="mixer")]


class FixedThreshold(Section):
    """theta = clamp(alpha * mean|x|, 0.01, 10), per token over channels, alpha constant."""

    kind: Literal["fixed"] = "fixed"
    alpha: float = Field(default=1.0, gt=0.0)
    """Threshold as a multiple of the token's mean absolute activation."""


class LearnedThreshold(Section):
    """As fixed, with alpha a parameter of each encoder that learns through the surrogate."""

    kind: Literal["learned"] = "learned"
    alpha: float = Field(default=1.0, gt=0.0)
    """Starting value."""


class Surrogate(Section):
    """The derivative that stands in for the spike's, as a function of the distance to the threshold."""

    kind: Literal["clipped_ste", "ste", "sigmoid", "triangle", "superspike", "atan", "recorded_ste"] = "clipped_ste"
    width: float = Field(default=1.0, gt=0.0)
    """Half-width of the surrogate in units of the quantization step; ignored by ste and recorded_ste."""
    gradient_scale: float = Field(default=1.0, gt=0.0)
    """Factor on the surrogate gradient."""


class Spikes(Section):
    """Where the student spikes and how a real number becomes a spike."""

    sites: tuple[SpikeSite, ...] = Field(default=("k", "v"), strict=False)
    """Tensors that are encoded; an empty list trains the dense twin."""
    levels: int = Field(default=1, ge=1, le=8)
    """Largest absolute spike value D; 1 is pure ternary."""
    threshold: Annotated[FixedThreshold | LearnedThreshold, Field(discriminator="kind")] = FixedThreshold()
    """How the threshold follows the activations."""
    amplitude: Literal["none", "scalar", "channel"] = "scalar"
    """Learned factor on the spikes."""
    scale: Literal["none", "token"] = "none"
    """`token` multiplies a spike by its token's step 2 * theta; `none` leaves unit spikes, as recorded."""
    surrogate: Surrogate = Surrogate()
    """Stand-in derivative of the threshold."""


class FixedTemperature(Section):
    """One temperature for the whole run (Hinton et al. 2015)."""

    kind: Literal["fixed"] = "fixed"
    value: float = Field(default=2.0, gt=0.0, le=100.0)
    """Divides teacher and student logits; the loss is multiplied by its square."""


class Objective(Section):
    """What is minimized, in nats per token.

    kl_weight * T^2 * KL(teacher || student) + cross_entropy_weight * CE, both averaged over the tokens.
    """

    temperature: FixedTemperature = FixedTemperature()
    kl_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the forward KL term."""
    cross_entropy_weight: float = Field(default=0.0, ge=0.0)
    """Weight of the next-token cross-entropy term."""
    chunk_tokens: int = Field(default=256, ge=1)
    """Tokens whose logits exist at one time."""

    @model_validator(mode="after")
    def _something_is_minimized(self) -> "Objective":
        if self.kl_weight == 0.0 and self.cross_entropy_weight == 0.0:
            raise ValueError("objective.kl_weight and objective.cross_entropy_weight are 0: raise one of them")
        return self


class EarlyStopping(Section):
    """Stop when the evaluation perplexity has not fallen for a while."""

    patience_steps: int = Field(default=500, ge=1)
    """Steps without an improvement after which the run stops."""
    min_delta: float = Field(default=1.0, ge=0.0)
    """Smallest fall in perplexity that counts."""


class TrainingOptions(Section):
    """What both budgets share."""

    batch_size: int = Field(default=8, ge=1)
    """Rows a micro-batch holds on each process."""
    accumulation: int = Field(default=1, ge=1)
    """Micro-batches a step sums over."""
    window: int = Field(default=256, ge=2)
    """Tokens a row holds."""
    learning_rate: float = Field(default=3e-4, gt=0.0)
    """Peak learning rate of AdamW."""
    warmup_steps: int = Field(default=50, ge=0)
    """Steps of linear warm-up."""
    learning_rate_floor: float = Field(default=0.0, ge=0.0, le=1.0)
    """End of the cosine as a share of the peak."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decay of matrices; norms, gains and other vectors have none."""
    betas: tuple[MomentDecay, MomentDecay] = Field(default=(0.9, 0.95), strict=False)
    """AdamW's moment decays."""
    clip_norm: float = Field(default=1.0, gt=0.0)
    """Largest gradient norm."""
    precision: Precision = "auto"
    """auto times bf16 and fp32 once and takes the faster."""
    compile: bool = False
    """Compile the student with torch.compile; where that fails it runs uncompiled and says so."""
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


class Recipe(Section):
    """A whole run."""

    description: str = ""
    """What the recipe is for, in one line."""
    teacher: Teacher = Teacher()
    data: Data
    student: Student = WkvStudent()
    spikes: Spikes = Spikes()
    objective: Objective = Objective()
    training: Training
    evaluation: Protocol = StandardProtocol()
    samples: int = Field(default=3, ge=0, le=20)
    """Beginnings of held-out text that teacher and student continue side by side at the end."""

    @model_validator(mode="after")
    def _windows_fit_positions(self) -> "Recipe":
        longest = max(self.training.window, self.evaluation.window)
        if isinstance(self.student, GooseStudent):
            # Its positions are the teacher's, which are known when the teacher is loaded.
            return self
        if self.student.positions == "learned" and longest > self.student.max_positions:
            raise ValueError(
                f"windows of {longest} tokens need student.max_positions >= {longest}, got {self.student.max_positions}"
            )
        return self
