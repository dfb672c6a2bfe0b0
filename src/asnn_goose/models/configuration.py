"""The student's configuration as transformers knows it: what config.json of a saved student holds."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, ClassVar, get_args

from transformers.configuration_utils import PreTrainedConfig

from asnn_goose.config_student import (
    GooseStudent,
    LifMembrane,
    Spikes,
    Surrogate,
    WkvStudent,
    check_amplitude,
    check_membrane,
    spike_sites,
)
from asnn_goose.config_text import Section
from asnn_goose.config_threshold import LearnedThreshold, check_amplitude_range, check_threshold
from asnn_goose.spikes.membrane import MembraneSpec

DEFAULT_SPIKES: dict[str, Any] = {
    "sites": ["k", "v"],
    "encoder": "ternary",
    "levels": 1,
    "alpha": 1.0,
    "learn_alpha": False,
    "alpha_per": "encoder",
    "scheduled_alpha": False,
    "channel_share": 0.0,
    "amplitude": "scalar",
    "group_channels": 32,
    "amplitude_init": "ones",
    "amplitude_range": None,
    "scale": "none",
    "store_alpha": False,
    "store_recurrence_alpha": True,
    "surrogate": {"kind": "clipped_ste", "width": 1.0, "gradient_scale": 1.0},
    "membrane": None,
}


class GooseConfig(PreTrainedConfig):
    """Shape and choices of a `GooseForCausalLM`.

    Args:
        vocab_size: Entries of the vocabulary, the teacher's.
        hidden_size: Width of the residual stream.
        num_hidden_layers: Number of blocks.
        intermediate_size: Inner width of the feed-forward part.
        norm: `layernorm` or `rmsnorm`.
        norm_eps: Constant under the norm's square root.
        mlp: `silu`, `gelu` (tanh form, as GPT-2) or `swiglu`.
        mlp_bias: Whether the feed-forward projections have biases.
        mixer: `wkv` or `goose`.
        positions: `learned`, `none`, or for goose `rotary`.
        max_position_embeddings: Longest sequence of learned positions, in tokens.
        num_attention_heads: For goose, heads that read a state.
        num_key_value_heads: Heads that hold one.
        head_dim: Channels of a head.
        attention_bias: Whether r, k and v have biases.
        attention_output_bias: Whether the mixer's output projection has one.
        key_norm: Whether r and k pass an RMS norm a head.
        rotary_frequencies: Radians a token for each pair of a head's channels, for rotary positions.
        rotary_scaling: Factor on what they turned.
        convolution: Taps of the short convolution.
        gate_rank: Rank of the output gate; 0 is none.
        decay_init: `spread` or `recorded`.
        mix_init: `spread` or `recorded`.
        recurrence: `exact`, or `recorded` for the old scan that forgets.
        scan_backend: `auto`, `reference`, `torch` or `numba`.
        spikes: Sites, by a preset's name or one by one, and encoder, with the keys of `DEFAULT_SPIKES`.
        teacher_name: What the student was distilled from.
        vocabulary_hash: SHA-256 of the tokenizer the student was trained with.

    Raises:
        ValueError: A choice that this version does not know, as in a student saved by a later one.
    """

    model_type: ClassVar[str] = "asnn_goose"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 50257
    hidden_size: int = 768
    num_hidden_layers: int = 5
    intermediate_size: int | None = None
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    mlp: str = "silu"
    mlp_bias: bool = False
    mixer: str = "wkv"
    positions: str = "learned"
    max_position_embeddings: int = 1024
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    attention_bias: bool = False
    attention_output_bias: bool = False
    key_norm: bool = False
    rotary_frequencies: list[float] | None = None
    rotary_scaling: float = 1.0
    convolution: int = 4
    gate_rank: int = 32
    output_norm: bool = False
    decay_init: str = "spread"
    mix_init: str = "spread"
    recurrence: str = "exact"
    scan_backend: str = "auto"
    spikes: dict[str, Any] | None = None
    teacher_name: str | None = None
    vocabulary_hash: str | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what follows from the other fields."""
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        self.spikes = {**deepcopy(DEFAULT_SPIKES), **(self.spikes or {})}
        for name in ("norm", "mlp", "decay_init", "mix_init", "recurrence"):
            check_choice(name, getattr(self, name), _options(WkvStudent, name))
        goose = self.mixer == "goose"
        check_choice("mixer", self.mixer, (*_options(WkvStudent, "mixer"), *_options(GooseStudent, "mixer")))
        check_choice("positions", self.positions, (*_options(WkvStudent, "positions"), *(("rotary",) if goose else ())))
        check_choice("scan_backend", self.scan_backend, _options(GooseStudent if goose else WkvStudent, "backend"))
        if goose:
            self._check_heads()
        check_spikes(self.spikes)
        sites = spike_sites(self.spikes["sites"], self.mixer, self.gate_rank)
        if self.spikes["membrane"] is not None:
            self.spikes["membrane"] = checked_membrane(self.spikes, sites)
        self.spikes["sites"] = [] if self.spikes["encoder"] == "dense" else list(sites)
        super().__post_init__(**kwargs)

    def _check_heads(self) -> None:
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        if not heads or not shared or not self.head_dim or heads % shared:
            raise ValueError(
                f"a goose mixer needs head_dim, and num_attention_heads a multiple of num_key_value_heads, got "
                f"{self.head_dim}, {heads} and {shared}"
            )
        if self.positions == "rotary" and len(self.rotary_frequencies or ()) * 2 != self.head_dim:
            raise ValueError(f"rotary positions need {self.head_dim // 2} rotary_frequencies, one for each pair")


def check_spikes(spikes: dict[str, Any]) -> None:
    """Refuse spike options that no encoder of this version understands.

    Raises:
        ValueError: A key or a choice that this version does not know.
    """
    for key in spikes:
        check_choice("spikes", key, tuple(DEFAULT_SPIKES))
    for name in ("encoder", "amplitude", "amplitude_init", "scale"):
        check_choice(f"spikes.{name}", spikes[name], _options(Spikes, name))
    check_choice("spikes.alpha_per", spikes["alpha_per"], _options(LearnedThreshold, "per"))
    per_channel, mixed = spikes["alpha_per"] == "channel", spikes["channel_share"] > 0
    check_threshold(per_channel, mixed, spikes["scale"], spikes["membrane"] is not None, spikes["encoder"])
    check_amplitude_range(spikes["amplitude_range"], spikes["amplitude"])
    check_amplitude(spikes["amplitude"], spikes["sites"])
    check_choice("spikes.surrogate.kind", spikes["surrogate"].get("kind", "clipped_ste"), _options(Surrogate, "kind"))


def checked_membrane(spikes: dict[str, Any], sites: Sequence[str]) -> dict[str, Any]:
    """The membrane that spike options ask for, with its defaults, if encoders at these sites can have it.

    Raises:
        ValueError: A key, a choice or a number that this version does not know, or a site that is not encoded.
    """
    membrane = {**LifMembrane().model_dump(), **spikes["membrane"]}
    for key in membrane:
        check_choice("spikes.membrane", key, tuple(LifMembrane.model_fields))
    check_choice("spikes.membrane.kind", membrane["kind"], _options(LifMembrane, "kind"))
    MembraneSpec(membrane["beta"], membrane["detach_reset"])
    check_membrane(membrane["sites"], sites, spikes["surrogate"].get("kind", "clipped_ste"))
    return {**membrane, "sites": None if membrane["sites"] is None else list(membrane["sites"])}


def check_choice(name: str, value: Any, options: tuple[str, ...]) -> None:
    """Refuse a value that is none of the options.

    Raises:
        ValueError: It is none of them.
    """
    if value not in options:
        raise ValueError(f"{name} is {value!r}, but this version of asnn-goose knows {', '.join(options)}")


def _options(section: type[Section], field: str) -> tuple[str, ...]:
    return get_args(section.model_fields[field].annotation)
