"""What is minimized: the terms of the objective and their weights."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from asnn_goose.config_features import FeatureDynamics, HiddenAlignment, SemanticSpikes
from asnn_goose.config_schedules import Weight, numbers_of
from asnn_goose.config_student import SpikeSite
from asnn_goose.config_temperature import FixedTemperature, Temperature, TrainedTemperature
from asnn_goose.config_text import Section


class ForwardKl(Section):
    """sum p log(p / q), of the student's distribution q from the teacher's p (Hinton et al. 2015)."""

    kind: Literal["forward_kl"] = "forward_kl"


class ReverseKl(Section):
    """sum q log(q / p), which lets the student leave out what it cannot do (Gu et al. 2024, MiniLLM)."""

    kind: Literal["reverse_kl"] = "reverse_kl"


class JensenShannon(Section):
    """share * KL(p || m) + (1 - share) * KL(q || m), m = share * p + (1 - share) * q (Agarwal et al. 2024, GKD)."""

    kind: Literal["jsd"] = "jsd"
    share: float = Field(default=0.5, gt=0.0, lt=1.0)
    """The teacher's share of the mixture."""


class SkewKl(Section):
    """KL(p || m), m = share * p + (1 - share) * q (Ko et al. 2024, DistiLLM)."""

    kind: Literal["skew_kl"] = "skew_kl"
    share: float = Field(default=0.1, gt=0.0, lt=1.0)
    """The teacher's share of the mixture."""


class TotalVariation(Section):
    """1/2 sum |p - q|, multiplied by T, since its form with T^2 grows without bound (Wen et al. 2023)."""

    kind: Literal["total_variation"] = "total_variation"


Divergence = Annotated[ForwardKl | ReverseKl | JensenShannon | SkewKl | TotalVariation, Field(discriminator="kind")]


class Activity(Section):
    """Keeps what layers read from spiking more than wanted, site by site: learned thresholds then rise.

    Adds weight * sum of the sites' penalties, each averaged over the blocks. Events per activation are mean |spike|.
    """

    events: float = Field(gt=0.0, lt=1.0)
    """Events per activation that are wanted at most."""
    sites: dict[SpikeSite, Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(default={}, strict=False)
    """Other numbers of events for single sites."""
    form: Literal["hinge", "l1"] = "hinge"
    """`hinge` is max(0, events - wanted), and 0 once there; `l1` is the events themselves, wherever they are."""
    weight: float = Field(default=1.0, gt=0.0)
    """Factor on the penalty, beside the other terms in nats."""


class ThresholdCollapse(Section):
    """Keeps learned thresholds from falling to where everything spikes: weight * max(0, least_alpha - alpha)^2."""

    weight: float = Field(default=1.0, gt=0.0)
    """Factor on the mean over encoders."""
    least_alpha: float = Field(default=0.1, gt=0.0)
    """Threshold factor below which it begins to pull."""


class Objective(Section):
    """What is minimized, in nats per token.

    kl_weight * T^2 * KL(teacher || student) + cross_entropy_weight * CE, both averaged over the tokens, the KL or what
    `divergence` puts in its place. Schedules run over all distilling stages that use the recipe's objective; those of a
    stage's own objective over that stage.
    """

    divergence: Divergence = ForwardKl()
    """How far the student's distribution is from the teacher's."""
    temperature: Temperature = FixedTemperature()
    """Softens both distributions that `divergence` compares."""
    kl_weight: Weight = 1.0
    """Weight of the divergence, or its schedule."""
    cross_entropy_weight: Weight = 0.0
    """Weight of the next-token cross-entropy term, or its schedule."""
    hidden_alignment: HiddenAlignment | None = None
    """Null leaves the hidden states free."""
    feature_dynamics: FeatureDynamics | None = None
    """Null does not compare how states move from layer to layer."""
    semantic: SemanticSpikes | None = None
    """Null lets spikes of k and v mean what they will."""
    activity: Activity | None = None
    """Null lets the student spike as much as it will."""
    amplitude_variance: float = Field(default=0.0, ge=0.0)
    """Weight of the variance of each encoder's amplitudes, averaged over encoders."""
    threshold_collapse: ThresholdCollapse | None = None
    """Null lets learned thresholds fall."""
    chunk_tokens: int = Field(default=256, ge=1)
    """Tokens whose logits exist at one time."""

    @model_validator(mode="after")
    def _something_is_minimized(self) -> "Objective":
        kl, cross_entropy = (max(numbers_of(weight)) for weight in (self.kl_weight, self.cross_entropy_weight))
        if kl == 0.0 and cross_entropy == 0.0:
            raise ValueError("objective.kl_weight and objective.cross_entropy_weight are 0: raise one of them")
        if kl == 0.0 and isinstance(self.temperature, TrainedTemperature):
            raise ValueError(
                "objective.kl_weight=0 leaves objective.temperature nothing to learn from: raise it, or give a fixed "
                "temperature"
            )
        return self

    @property
    def follows_hidden_states(self) -> bool:
        """Whether it compares hidden states with the teacher's."""
        return any(part is not None for part in (self.hidden_alignment, self.feature_dynamics, self.semantic))
