"""One block of the student, and its parts as the configuration describes them."""

from collections.abc import Callable, Mapping
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asnn_goose.models.cache import RecurrentLayer
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.goose_mixer import GooseMixer, GooseShape
from asnn_goose.models.mixers import FeedForward, MixerMemory
from asnn_goose.models.rotary import RotaryPositions, Tables
from asnn_goose.models.spiking_linear import Before, SiteTrace, Traces, membranes_after
from asnn_goose.models.wkv_mixer import WkvMixer
from asnn_goose.spikes.encoder import SpikeEncoder
from asnn_goose.spikes.membrane import MembraneSpec
from asnn_goose.spikes.surrogate import SurrogateSpec
from asnn_goose.spikes.threshold import ThresholdSpec

BlockRunner = Callable[..., tuple[Tensor, Traces]]
"""Runs a block as `run_block` does."""


class GooseBlock(nn.Module):
    """One block: x + mixer(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: GooseConfig, layer: int) -> None:
        super().__init__()
        self.mixer_norm = build_norm(config)
        self.mixer = build_mixer(config, layer)
        self.feed_forward_norm = build_norm(config)
        inner_width = cast(int, config.intermediate_size)
        self.feed_forward = FeedForward(
            config.hidden_size,
            inner_width,
            cast(Any, config.mlp),
            config.mlp_bias,
            build_encoders(config, {"ffn_in": config.hidden_size, "ffn_mid": inner_width}),
            nn.RMSNorm(inner_width, eps=config.norm_eps) if config.output_norm else None,
        )

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        cache: RecurrentLayer | None,
        valid: Tensor | None,
        tables: Tables | None,
    ) -> tuple[Float[Tensor, "batch time width"], Traces]:
        """The block's output and what its sites leave; the layer's cache, if given, is updated.

        `tables` are those of its rotary positions, which all blocks share.
        """
        memory = None
        if cache is not None and cache.state is not None and cache.shift is not None:
            memory = MixerMemory(cache.state, cache.shift, cache.membranes)
        mixed = self.mixer(self.mixer_norm(x), memory, valid, tables)
        x = x + mixed.residual
        before = Before({} if cache is None else cache.membranes, valid)
        fed, traces = self.feed_forward(self.feed_forward_norm(x), before)
        if cache is not None:
            cache.update(mixed.memory.state, mixed.memory.shift)
            cache.remember({**mixed.memory.membranes, **membranes_after(traces)})
        return x + fed, mixed.traces | traces


def run_block(
    block: GooseBlock,
    x: Tensor,
    cache: RecurrentLayer | None,
    valid: Tensor | None,
    tables: Tables | None,
    watched: bool = True,
) -> tuple[Tensor, Traces]:
    """One block as a plain function, which is compiled once and then serves all blocks, since all are alike.

    Where nobody watches its spikes it returns none, and only what an objective counts: a compiled block would write
    them all to memory.
    """
    x, traces = block(x, cache, valid, tables)
    if watched:
        return x, traces
    wanted = {site: SiteTrace(None, trace.events, None, trace.sent) for site, trace in traces.items()}
    return x, {site: kept for site, kept in wanted.items() if kept.events is not None or kept.sent is not None}


def recomputed(runner: BlockRunner) -> BlockRunner:
    """A runner that keeps only what enters a block, and runs the block again in the backward (Chen et al. 2016)."""

    def run(*arguments: Any) -> tuple[Tensor, Traces]:
        """One block; nothing in it draws random numbers."""
        found: tuple[Tensor, Traces] = checkpoint(runner, *arguments, use_reentrant=False, preserve_rng_state=False)
        return found

    return run


def build_norm(config: GooseConfig) -> nn.Module:
    """The normalization a configuration names."""
    norm = nn.LayerNorm if config.norm == "layernorm" else nn.RMSNorm
    return norm(config.hidden_size, eps=config.norm_eps)


def build_mixer(config: GooseConfig, layer: int) -> WkvMixer | GooseMixer:
    """The mixer of one block, with its spike encoders."""
    if config.mixer == "goose":
        shape = GooseShape(
            width=config.hidden_size,
            heads=cast(int, config.num_attention_heads),
            key_value_heads=cast(int, config.num_key_value_heads),
            head_width=cast(int, config.head_dim),
            bias=config.attention_bias,
            output_bias=config.attention_output_bias,
            key_norm=config.key_norm,
            norm_eps=config.norm_eps,
            convolution=config.convolution,
            gate_rank=config.gate_rank,
            output_norm=config.output_norm,
        )
        rotary = None
        if config.positions == "rotary":
            rotary = RotaryPositions(tuple(cast(list[float], config.rotary_frequencies)), config.rotary_scaling)
        state, rank = shape.state_width, shape.gate_rank
        widths = {"k": state, "v": state, "mixer_in": shape.width, "gate_mid": rank, "mixer_out": shape.read_width}
        encoders = build_encoders(config, widths)
        return GooseMixer(shape, encoders, rotary, cast(Any, config.scan_backend))
    encoders = build_encoders(config, dict.fromkeys(("k", "v", "mixer_out"), config.hidden_size))
    return WkvMixer(
        width=config.hidden_size,
        layer=layer,
        layers=config.num_hidden_layers,
        encoders=encoders,
        decay_init=cast(Any, config.decay_init),
        mix_init=cast(Any, config.mix_init),
        recurrence=cast(Any, config.recurrence),
        backend=cast(Any, config.scan_backend),
    )


def build_encoders(config: GooseConfig, widths: Mapping[str, int]) -> dict[str, SpikeEncoder]:
    """Encoders of those of the given sites, each with its width, that the configuration encodes."""
    sites = cast(dict[str, Any], config.spikes)["sites"]
    return {site: build_encoder(config, site, width) for site, width in widths.items() if site in sites}


def build_encoder(config: GooseConfig, site: str, width: int) -> SpikeEncoder:
    """A spike encoder as the configuration describes it."""
    spikes = cast(dict[str, Any], config.spikes)
    membrane = spikes["membrane"]
    leaks = membrane is not None and (membrane["sites"] is None or site in membrane["sites"])
    return SpikeEncoder(
        width=width,
        levels=spikes["levels"],
        alpha=spikes["alpha"],
        learn_alpha=spikes["learn_alpha"],
        amplitude=spikes["amplitude"],
        scale=spikes["scale"],
        surrogate=SurrogateSpec(**spikes["surrogate"]),
        kind=spikes["encoder"],
        group_channels=spikes["group_channels"],
        store_alpha=spikes["store_alpha"] and (spikes["store_recurrence_alpha"] or site not in ("k", "v")),
        membrane=MembraneSpec(membrane["beta"], membrane["detach_reset"]) if leaks else None,
        threshold=ThresholdSpec(
            channelwise=spikes["alpha_per"] == "channel",
            scheduled=spikes["scheduled_alpha"],
            channel_share=spikes["channel_share"],
        ),
        jitter=spikes["amplitude_init"] == "jitter",
        amplitude_range=None if spikes["amplitude_range"] is None else tuple(spikes["amplitude_range"]),
    )
