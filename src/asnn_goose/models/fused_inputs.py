"""When a mixer's inputs are made by one operator on a GPU, and how its parts are told to that operator."""

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from asnn_goose.kernels.site_encoding import SiteEncoding
from asnn_goose.models.rotary import Tables
from asnn_goose.models.spiking_linear import SiteTrace, Traces
from asnn_goose.spikes.encoder import THRESHOLD_RANGE, SpikeEncoder

if find_spec("triton") is not None:
    from asnn_goose.kernels.mixer_inputs_triton import mixer_inputs_triton, refusal

LEAST_TOKENS: dict[str, float] = {"cuda": 2_048 if find_spec("triton") is not None else math.inf}
"""Tokens from which on the operator is used, by device: a few, as in decoding, are done sooner by torch."""
SURROGATES = ("clipped_ste", "ste")
"""Surrogates that the operator knows."""


def fusible(projected: Tensor, taps: Tensor, heads: tuple[int, int, int], encoders: nn.ModuleDict) -> bool:
    """Whether the operator serves: many tokens on a GPU, sizes and dtypes it takes, and encoders it can express."""
    if projected.shape[:-1].numel() < LEAST_TOKENS.get(projected.device.type, math.inf):
        return False
    if not all(_expressible(encoders[site]) for site in ("k", "v") if site in encoders):
        return False
    return refusal(projected, taps, heads, (_encoding(encoders, "k"), _encoding(encoders, "v"))) is None


def fused_inputs(
    projected: Tensor,
    taps: Tensor,
    tail: Tensor,
    tables: Tables | None,
    heads: tuple[int, int, int],
    encoders: nn.ModuleDict,
    dtype: torch.dtype,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Traces]:
    """r, k and v in `dtype`, the columns behind them, and what the sites leave; see `mixer_inputs_triton`."""
    encodings = _encoding(encoders, "k"), _encoding(encoders, "v")
    made = mixer_inputs_triton(projected, taps, tail, tables, heads, encodings, THRESHOLD_RANGE, dtype)
    found = {"k": made.key_spikes, "v": made.value_spikes}
    traces = {site: SiteTrace(found[site]) for site in ("k", "v") if site in encoders}
    return (made.receptance, made.key, made.value), made.rest, traces


def _expressible(encoder: Any) -> bool:
    """A factor that does not learn, no amplitude, a known surrogate, no blending or membrane, nobody who watches."""
    return (
        isinstance(encoder, SpikeEncoder)
        and encoder.kind == "ternary"
        and not encoder._forward_hooks
        and not encoder.learns_alpha
        and encoder.amplitude is None
        and encoder.hardness is None
        and not encoder.remembers
        and not encoder.threshold.scheduled
        and not encoder.counts_events
        and encoder.surrogate.kind in SURROGATES
    )


def _encoding(encoders: nn.ModuleDict, site: str) -> SiteEncoding | None:
    if site not in encoders:
        return None
    encoder: Any = encoders[site]
    surrogate = encoder.surrogate
    limit = encoder.levels - 0.5 + surrogate.width if surrogate.kind == "clipped_ste" else math.inf
    own = encoder.alpha if encoder.stores_alpha else None
    given = 1.0 if encoder.stores_alpha else encoder.alpha
    return SiteEncoding(encoder.levels, given, limit, surrogate.gradient_scale, encoder.scale == "token", own)
