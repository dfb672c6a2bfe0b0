"""What of the teacher's inside a student may follow: hidden states, how they move, and their sign as spikes.

States are numbered as transformers lists them: 0 is the embeddings' output, i the output of block i - 1.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from asnn_goose.config_schedules import PositiveWeight
from asnn_goose.config_text import Section

Number = Annotated[int, Field(ge=0)]
BlockPairs = tuple[Annotated[tuple[Number, Number], Field(strict=False)], ...]
"""Blocks of the student, each with one of the teacher's, both from 0."""
LastState = Literal["stream", "normed"]


class NoProjector(Section):
    """States are compared as they are, which needs a student as wide as its teacher (or loss `cka` or `relation`)."""

    kind: Literal["none"] = "none"


class ProjectorOptions(Section):
    """What every projector has: it takes a student's state to the teacher's width, one for each compared state."""

    frozen: bool = False
    """Keep it as it was drawn; a trained one is no part of the student that is saved."""
    std: float | None = Field(default=None, gt=0.0)
    """Standard deviation of its starting weights, 0.02 as recorded; null is 1 / sqrt(inputs), which keeps lengths."""


class LinearProjector(ProjectorOptions):
    """One matrix without a bias (FitNets, Romero et al. 2015)."""

    kind: Literal["linear"]


class MlpProjector(ProjectorOptions):
    """Two matrices with a SiLU between."""

    kind: Literal["mlp"]
    hidden_width: int | None = Field(default=None, ge=1)
    """Channels between; null is the teacher's width."""


class FactorizedProjector(ProjectorOptions):
    """Two matrices with nothing between, of a low rank."""

    kind: Literal["factorized"]
    rank: int = Field(default=64, ge=1)
    """Channels between."""


Projector = Annotated[NoProjector | LinearProjector | MlpProjector | FactorizedProjector, Field(discriminator="kind")]


class BlockMap(Section):
    """Each block follows the last of the teacher's blocks that it stands for, in a student copied from its teacher."""

    kind: Literal["block"] = "block"


class UniformMap(Section):
    """Block i of L follows state round((i + 1) * teacher's blocks / L), as recorded."""

    kind: Literal["uniform"]


class SkipMap(Section):
    """Block i follows state (i + 1) * every (TinyBERT, Jiao et al. 2020)."""

    kind: Literal["skip"]
    every: int | None = Field(default=None, ge=1)
    """The teacher's blocks to a step; null is as many as go into the teacher's depth."""


class LastMap(Section):
    """The student's last blocks follow the teacher's last ones (PKD-last, Sun et al. 2019)."""

    kind: Literal["last"]
    count: int | None = Field(default=None, ge=1)
    """How many; null is all of the student's."""


class GivenMap(Section):
    """Each block follows the state that is listed for it."""

    kind: Literal["given"]
    states: tuple[Number, ...] = Field(strict=False)
    """One state of the teacher's for each block of the student."""


class LearnedMap(Section):
    """Each block follows a mean of all the teacher's block outputs, whose weights are the softmax of learned numbers.

    The weights start around the uniform map's state. Nothing keeps them from what is easiest to follow.
    """

    kind: Literal["learned"]
    spread: float = Field(default=1.0, gt=0.0)
    """Standard deviation of the starting weights, in the teacher's blocks."""


LayerMap = Annotated[
    BlockMap | UniformMap | SkipMap | LastMap | GivenMap | LearnedMap,
    Field(discriminator="kind"),
]


class HiddenAlignment(Section):
    """What blocks of the student leave in the residual stream follows what the teacher's had there.

    Adds weight * the mean of the compared states' errors. With student h (projected, if asked for) and teacher t:
    `channel` is (h - t)^2 / var(t), averaged over channels and tokens, with each channel's variance over the tokens of
    the micro-batch: where a few channels hold most of the stream's power (three of SmolLM2's 576 hold half of it), an
    error relative to the whole would see little else. `mse` is (h - t)^2, averaged likewise, as recorded; `cosine` is
    1 - cos(h, t) and `relative_l2` |h - t|^2 / |t|^2, averaged over tokens; `cka` is 1 - CKA over the micro-batch's
    tokens, each brought to unit length. `relation` transfers what tokens look at: softmax over the earlier tokens of
    cos(h_i, h_j) / 0.1, as a KL from the teacher's, averaged over tokens. It stands for attention transfer (MiniLM's
    relations, Wang et al. 2020, of hidden states): a recurrence has no attention map that a teacher's could be compared
    with.
    """

    weight: PositiveWeight = 4.0
    """Factor on the error, beside the other terms in nats, or its schedule."""
    loss: Literal["channel", "mse", "cosine", "relative_l2", "cka", "relation"] = "channel"
    """How two states are compared."""
    projector: Projector = NoProjector()
    """What takes a student's state to the teacher's width."""
    layer_map: LayerMap = BlockMap()
    """Which of the teacher's states each block follows."""
    layer_weights: tuple[Annotated[float, Field(ge=0.0)], ...] | None = Field(default=None, strict=False)
    """Weights of the compared states in the mean, first to last; null weighs all alike."""
    embeddings: bool = False
    """Compare the embeddings' outputs too, before all blocks."""
    last_state: LastState = "stream"
    """The teacher's last state before its final norm, as all others are, or after it (`normed`), as recorded."""
    introduce_steps: int = Field(default=0, ge=0)
    """Steps of the stage over which the weight rises linearly to its full size; 0 begins with it."""

    @model_validator(mode="after")
    def _something_weighs(self) -> "HiddenAlignment":
        if self.layer_weights is not None and not any(self.layer_weights):
            raise ValueError("objective.hidden_alignment.layer_weights are all 0: raise one, or give null")
        return self


class DynamicsOptions(Section):
    """What both kinds of feature dynamics share."""

    warmup_steps: int = Field(default=500, ge=0)
    """Steps of the stage before the term counts; then it does in full."""
    kill_ratio: float | None = Field(default=1.10, gt=1.0)
    """Perplexity over that of the first evaluation behind the warm-up, above which the term is off for good; null
    never turns it off."""


class CkaDynamics(DynamicsOptions):
    """How blocks change the stream is alike: 1 - CKA of h_{l+1} - h_l, averaged over pairs of blocks (as recorded)."""

    kind: Literal["cka"]
    weight: float = Field(default=0.001, gt=0.0)
    """Factor on the term."""
    compare: Literal["cka", "mse"] = "cka"
    """How changes are compared; `mse` for a student as wide as its teacher."""
    pairs: BlockPairs | None = Field(default=None, strict=False)
    """Blocks that are compared, as [student's, teacher's] from 0; null takes up to three by their share of depth."""
    recorded_offset: bool = False
    """Take the change of the block behind each, and skip a pair that has none, as the recorded code did."""


class PredictionDynamics(DynamicsOptions):
    """How predictions form from layer to layer is alike (FDD, Gong et al. 2025).

    Some states at equal shares of depth, the last among them, are read through each model's own final norm and head.
    The trajectory is the KL of these readings but the last, whose KL is the objective's own; the dynamics are 1 - cos
    of the change of log probabilities from each reading to the next.
    """

    kind: Literal["prediction"]
    layers: int = Field(default=4, ge=2)
    """States that are read, at most as many as there are blocks."""
    trajectory_weight: float = Field(default=1.0, ge=0.0)
    """Factor on the readings' mean KL, at temperature 1."""
    dynamics_weight: float = Field(default=1.0, ge=0.0)
    """Factor on the mean of 1 - cos."""

    @model_validator(mode="after")
    def _something_weighs(self) -> "PredictionDynamics":
        if self.trajectory_weight == 0.0 and self.dynamics_weight == 0.0:
            raise ValueError(
                "objective.feature_dynamics.trajectory_weight and dynamics_weight are 0: raise one, or drop the section"
            )
        return self


FeatureDynamics = Annotated[CkaDynamics | PredictionDynamics, Field(discriminator="kind")]


class SemanticSpikes(Section):
    """Spikes mean what the teacher's state is: mean square of (k + v) / 2 minus that state's signs (as recorded).

    The signs are those of the state less its mean over channels, 0 where it is no larger than `threshold` times its
    mean magnitude, token by token. For wkv students as wide as their teacher.
    """

    weight: float = Field(default=0.08, gt=0.0)
    """Factor on the error once it has risen."""
    begin_step: int = Field(default=400, ge=0)
    """Step of the stage up to which the weight is 0."""
    full_step: int = Field(default=800, ge=1)
    """Step at which its linear rise has ended."""
    threshold: float = Field(default=0.75, gt=0.0)
    """Share of a token's mean magnitude up to which a channel counts as silent."""
    pairs: BlockPairs | None = Field(default=None, strict=False)
    """Blocks that are compared, as [student's, teacher's] from 0; the state is the one behind the teacher's block. Null
    takes up to three by their share of depth."""
    last_state: LastState = "stream"
    """The teacher's last state before its final norm, or after it (`normed`), as recorded."""

    @model_validator(mode="after")
    def _rises(self) -> "SemanticSpikes":
        if self.full_step <= self.begin_step:
            raise ValueError(
                f"objective.semantic.full_step={self.full_step} is not behind begin_step={self.begin_step}: raise it"
            )
        return self
