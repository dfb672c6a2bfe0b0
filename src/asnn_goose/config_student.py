"""What a student can be: its mixer, its shape, and where and how it spikes."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from asnn_goose.config_text import Section
from asnn_goose.config_threshold import (
    FixedThreshold,
    LearnedThreshold,
    MixedThreshold,
    PositiveAmplitude,
    ProgressiveThreshold,
    Threshold,
    check_amplitude_range,
    check_threshold,
)

SpikeSite = Literal["k", "v", "mixer_in", "gate_mid", "mixer_out", "ffn_in", "ffn_mid", "head_in"]
"""What can be encoded: k and v of the recurrence, and the input of every linear layer.

`mixer_in` feeds r, k, v, rates and the gate's first factor, `gate_mid` its second, `mixer_out` the output projection,
`ffn_in` up and gate, `ffn_mid` down, `head_in` the head.
"""
SitePreset = Literal["recorded", "all", "all+head"]
ALL_SITES: tuple[SpikeSite, ...] = ("k", "v", "mixer_in", "gate_mid", "mixer_out", "ffn_in", "ffn_mid")
SITE_PRESETS: dict[str, tuple[SpikeSite, ...]] = {
    "recorded": ("k", "v"),
    "all": ALL_SITES,
    "all+head": (*ALL_SITES, "head_in"),
}


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
    backend: Literal["auto", "reference", "torch", "numba", "triton"] = "auto"
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
    output_norm: bool = False
    """Normalize what the last projection of each sublayer reads (an RMS norm, as SubLN of BitNet b1.58 has it)."""
    calibration_tokens: int = Field(default=16384, ge=0)
    """Tokens of training text on which rates, gains and output projections are fitted to attention; 0 fits none."""
    backend: Literal["auto", "reference", "torch", "triton"] = "auto"
    """Implementation of the recurrence."""


Student = Annotated[WkvStudent | GooseStudent, Field(discriminator="mixer")]


class Surrogate(Section):
    """The derivative that stands in for the spike's, as a function of the distance to the threshold."""

    kind: Literal["clipped_ste", "ste", "sigmoid", "triangle", "superspike", "atan", "recorded_ste"] = "clipped_ste"
    width: float = Field(default=1.0, gt=0.0)
    """Half-width of the surrogate in units of the quantization step; ignored by ste and recorded_ste."""
    gradient_scale: float = Field(default=1.0, gt=0.0)
    """Factor on the surrogate gradient."""


class LifMembrane(Section):
    """What a spike leaves of an activation is carried to the next token: u_t = beta * (u_{t-1} - s_{t-1}) + z_t.

    A leaky integrate-and-fire neuron with soft reset; z is the activation in steps, and the staircase takes u for z.
    """

    kind: Literal["lif"] = "lif"
    beta: float = Field(default=0.9, ge=0.0, lt=1.0)
    """What a token leaves of the membrane; 0 remembers nothing."""
    detach_reset: bool = False
    """Whether gradients count what a spike takes off as a constant, as in snnTorch and, if asked to, in SpikingJelly.
    They then add up over time, and under a surrogate as wide as the default one training may diverge."""
    sites: Annotated[tuple[SpikeSite, ...], Field(strict=False)] | None = None
    """Encoded sites that have a membrane; null is all of them."""


class Spikes(Section):
    """Where the student spikes and how a real number becomes a spike."""

    sites: SitePreset | Annotated[tuple[SpikeSite, ...], Field(strict=False)] = ("k", "v")
    """Tensors that are encoded: `recorded` is k and v, `all` also the input of every linear layer that the student has,
    `all+head` the head's too, or a list; an empty list trains the dense twin."""
    encoder: Literal["ternary", "binary", "quantized", "dense"] = "ternary"
    """`ternary` spikes have both signs, `binary` ones are not negative. Two twins for comparison: `quantized` rounds to
    as many levels between a token's largest magnitudes, `dense` encodes nothing."""
    levels: int = Field(default=1, ge=1, le=8)
    """Largest absolute spike value D; 1 is pure ternary (or binary)."""
    threshold: Threshold = FixedThreshold()
    """How the threshold follows the activations."""
    amplitude: Literal["none", "scalar", "channel", "group", "asymmetric"] = "scalar"
    """Learned factor on the spikes: one, one a channel, one for each group of channels, or one for each sign (k and v
    alone: a matrix would have to read its spikes twice)."""
    group_channels: int = Field(default=32, ge=1)
    """Channels that share an amplitude of kind `group`."""
    amplitude_init: Literal["ones", "jitter"] = "ones"
    """`jitter` draws each from 0.9 to 1.1: where k and v enter only as their product, equal starts stay equal."""
    amplitude_range: tuple[PositiveAmplitude, PositiveAmplitude] | None = Field(default=None, strict=False)
    """What amplitudes are clamped to where they are used, such as [0.25, 4], as recorded for v15r; null is not."""
    scale: Literal["none", "token"] = "none"
    """`token` multiplies a spike by its token's step 2 * theta; `none` leaves unit spikes, as recorded."""
    calibrate: bool = True
    """Start each threshold where spikes have the least squared error on the dense student's activations, if they have a
    scale; otherwise all start as `threshold` says."""
    calibrate_recurrence: bool = True
    """Whether that holds for k and v too; false leaves theirs as `threshold` says."""
    migrate: bool = False
    """Divide loud channels at linear layers' inputs and multiply the columns that read them, before thresholds are
    chosen, where that brings the layers' outputs nearer to the dense student's; a head that reads spikes is untied."""
    surrogate: Surrogate = Surrogate()
    """Stand-in derivative of the threshold."""
    membrane: LifMembrane | None = None
    """Null encodes each token by itself; thresholds are calibrated as if it were null."""

    @model_validator(mode="after")
    def _signs_are_no_matrix_inputs(self) -> "Spikes":
        check_amplitude(self.amplitude, self.sites)
        return self

    @model_validator(mode="after")
    def _thresholds_can_be(self) -> "Spikes":
        threshold = self.threshold
        per_channel = isinstance(threshold, LearnedThreshold) and threshold.per == "channel"
        mixed = isinstance(threshold, MixedThreshold)
        check_threshold(per_channel, mixed, self.scale, self.membrane is not None, self.encoder)
        if isinstance(threshold, ProgressiveThreshold) and self.calibrate and self.scale == "token":
            raise ValueError(
                "spikes.threshold.kind=progressive says what thresholds are, and spikes.calibrate=true would search "
                "for them: set spikes.calibrate=false"
            )
        return self

    @model_validator(mode="after")
    def _amplitudes_start_in_range(self) -> "Spikes":
        check_amplitude_range(self.amplitude_range, self.amplitude)
        return self

    @model_validator(mode="after")
    def _membranes_have_sites(self) -> "Spikes":
        if self.membrane is not None:
            check_membrane(self.membrane.sites, self.sites, self.surrogate.kind)
        return self

    @model_validator(mode="after")
    def _channels_move_with_thresholds(self) -> "Spikes":
        if self.migrate and not (self.calibrate and self.scale == "token"):
            raise ValueError(
                "spikes.migrate=true is searched for together with thresholds that follow a scale: "
                "give spikes.calibrate=true and spikes.scale=token"
            )
        return self

    @field_validator("sites", mode="before")
    @classmethod
    def _sites_are_known(cls, value: Any) -> Any:
        # The union's own errors would name the presets alone.
        names = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
        known = SITE_PRESETS if isinstance(value, str) else SITE_PRESETS["all+head"]
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None:
            raise ValueError(
                f"spikes.sites: expected {', '.join(SITE_PRESETS)} or a list of {', '.join(SITE_PRESETS['all+head'])}, "
                f'got "{unknown}"'
            )
        return value


def spike_sites(chosen: str | Sequence[str], mixer: str, gate_rank: int) -> tuple[str, ...]:
    """The sites that a choice means for a student: of a preset, those that the student has.

    A wkv mixer has no `mixer_in`: its token shift makes three vectors of one input, each read by one projection alone.

    Args:
        chosen: A preset's name, or sites.
        mixer: `wkv` or `goose`.
        gate_rank: Rank of a goose mixer's output gate; 0 is no gate.

    Raises:
        ValueError: It names a site that does not exist, or not in this student.
    """
    missing = {"mixer_in", "gate_mid"} if mixer == "wkv" else set() if gate_rank else {"gate_mid"}
    known = [site for site in SITE_PRESETS["all+head"] if site not in missing]
    if isinstance(chosen, str):
        if chosen not in SITE_PRESETS:
            raise ValueError(f"spikes.sites is {chosen!r}: expected a list, or one of {', '.join(SITE_PRESETS)}")
        return tuple(site for site in SITE_PRESETS[chosen] if site in known)
    for site in chosen:
        if site not in known:
            student = f"{mixer} student" if mixer == "wkv" or gate_rank else f"{mixer} student without gate"
            raise ValueError(f"spikes.sites names {site!r}, but a {student} knows the sites {', '.join(known)}")
    return tuple(chosen)


def check_amplitude(amplitude: str, sites: str | Sequence[str]) -> None:
    """Refuse an amplitude for each sign at sites that linear layers read.

    Raises:
        ValueError: There is such a site.
    """
    if amplitude == "asymmetric" and set(SITE_PRESETS.get(sites, ()) if isinstance(sites, str) else sites) - {"k", "v"}:
        raise ValueError(
            "spikes.amplitude=asymmetric is for the sites k and v: a linear layer reads spikes once, without regard to "
            "sign; give none, scalar, channel or group"
        )


def check_membrane(chosen: Sequence[str] | None, sites: str | Sequence[str], surrogate: str) -> None:
    """Refuse membranes at sites that are not encoded, and a surrogate that passes the membrane by.

    Raises:
        ValueError: There is such a site, or such a surrogate.
    """
    encoded = SITE_PRESETS.get(sites, ()) if isinstance(sites, str) else tuple(sites)
    for site in chosen or ():
        if site not in encoded:
            raise ValueError(
                f"spikes.membrane.sites names {site!r}, but what is encoded is {', '.join(encoded) or 'nothing'}: give "
                "some of these, or add it to spikes.sites"
            )
    if surrogate == "recorded_ste":
        raise ValueError(
            "spikes.surrogate.kind=recorded_ste passes gradients by the membrane: give clipped_ste, ste or another, or "
            "spikes.membrane=null"
        )
