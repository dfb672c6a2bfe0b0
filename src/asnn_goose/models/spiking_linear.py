"""Linear layers that read spikes: the product takes the integers, what gives them their size is multiplied after it.

With values s, a token's scale c and a bias b: y = c * (W s) + b.
"""

from collections.abc import Mapping
from typing import NamedTuple, cast

from jaxtyping import Float
from torch import Tensor, nn

from asnn_goose.spikes.encoder import SpikeEncoder, Spikes


class LayerInput(NamedTuple):
    """What linear layers multiply, and the factor on their product; None is 1.

    `values` are integers where a site is encoded, times the amplitude of each channel where it has one: that one is
    part of the product until `fold_amplitudes` moves it into the weights.
    """

    values: Float[Tensor, "*batch width"]
    scale: Float[Tensor, "*scale"] | None = None

    def dense(self) -> Float[Tensor, "*batch width"]:
        """The real numbers that stand for it: a product of these, without a factor, is the same number."""
        return self.values if self.scale is None else self.values * self.scale


class SiteTrace(NamedTuple):
    """What a site leaves to be looked at, beside what is computed with it.

    Attributes:
        values: Its integer spikes; None where nobody looks. They carry no gradient: a compiled block would hand back
            one of zeros for each site.
        events: Mean |value|, with a gradient, where an encoder counts them for an objective.
        membrane: What its encoder remembers of each row after the last token, where it remembers anything.
        sent: What the spikes stand for, with a gradient, where an encoder shows it for an objective.
    """

    values: Tensor | None
    events: Tensor | None = None
    membrane: Tensor | None = None
    sent: Tensor | None = None


Traces = dict[str, SiteTrace]
"""What the sites of a block leave, by site."""


class Before(NamedTuple):
    """What encoders that remember look at beside their activations.

    Attributes:
        membranes: What they left at the end of the last call, by site; a missing one starts from zero.
        valid: Where a token is no padding; None is everywhere.
    """

    membranes: Mapping[str, Tensor]
    valid: Tensor | None


def membranes_after(traces: Traces) -> dict[str, Tensor]:
    """The membranes that a call leaves, by site."""
    return {site: trace.membrane for site, trace in traces.items() if trace.membrane is not None}


def encode(
    encoders: nn.ModuleDict, site: str, x: Float[Tensor, "*batch width"], traces: Traces, before: Before | None = None
) -> Spikes:
    """The spikes of an encoded site, whose trace is put with the others."""
    encoder = cast(SpikeEncoder, encoders[site])
    remembered = () if before is None or not encoder.remembers else (before.membranes.get(site), before.valid)
    encoded: Spikes = encoder(x, *remembered)
    events = encoded.values.abs().mean() if encoder.counts_events else None
    sent = encoded.dense() if encoder.shows_spikes else None
    traces[site] = SiteTrace(encoded.values.detach(), events, encoded.membrane, sent)
    return encoded


def encode_site(
    encoders: nn.ModuleDict, site: str, x: Float[Tensor, "*batch width"], traces: Traces, before: Before | None = None
) -> Float[Tensor, "*batch width"]:
    """What the site's spikes stand for, as a recurrence reads it; `x` where nothing encodes it."""
    return encode(encoders, site, x, traces, before).dense() if site in encoders else x


def layer_input(
    encoders: nn.ModuleDict, site: str, x: Float[Tensor, "*batch width"], traces: Traces, before: Before | None = None
) -> LayerInput:
    """What the linear layers behind a site multiply: its spikes; `x` where nothing encodes it."""
    if site not in encoders:
        return LayerInput(x)
    values, scale, amplitude, _ = encode(encoders, site, x, traces, before)
    if amplitude is not None and amplitude.ndim:
        values = values * amplitude
    elif amplitude is not None:
        scale = amplitude if scale is None else scale * amplitude
    return LayerInput(values, scale)


def spiking_linear(layer: nn.Module, given: LayerInput) -> Float[Tensor, "*batch columns"]:
    """The layer's output for the spikes, in the dtype of its product.

    The layer is called itself, so that hooks and adapters see the values. It adds its bias before the factor; what
    the factor does to the bias is taken back.
    """
    product: Tensor = layer(given.values)
    if given.scale is None:
        return product
    scaled = product * given.scale
    bias = cast(Tensor | None, layer.bias)
    if bias is not None:
        scaled = scaled + bias * (1 - given.scale)
    return scaled.to(product.dtype)
