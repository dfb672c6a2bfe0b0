"""What is minimized: the terms of the objective, their weights, and the temperature."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from asnn_goose.config_features import FeatureDynamics, HiddenAlignment, SemanticSpikes
from asnn_goose.config_student import SpikeSite
from asnn_goose.config_text import Section


class FixedTemperature(Section):
    """One temperature for the whole run (Hinton et al. 2015)."""

    kind: Literal["fixed"] = "fixed"
    value: float = Field(default=2.0, gt=0.0, le=100.0)
    """Divides teacher and student logits; the loss is multiplied by its square."""


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

    kl_weight * T^2 * KL(teacher || student) + cross_entropy_weight * CE, both averaged over the tokens.
    """

    temperature: FixedTemperature = FixedTemperature()
    kl_weight: float = Field(default=1.0, ge=0.0)
    """Weight of the forward KL term."""
    cross_entropy_weight: float = Field(default=0.0, ge=0.0)
    """Weight of the next-token cross-entropy term."""
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
        if self.kl_weight == 0.0 and self.cross_entropy_weight == 0.0:
            raise ValueError("objective.kl_weight and objective.cross_entropy_weight are 0: raise one of them")
        return self

    @property
    def follows_hidden_states(self) -> bool:
        """Whether it compares hidden states with the teacher's."""
        return any(part is not None for part in (self.hidden_alignment, self.feature_dynamics, self.semantic))
