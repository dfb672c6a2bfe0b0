"""Linear layers that read spikes: the product takes the integers, what gives them their size is multiplied after it.

With values s, a token's scale c and a bias b: y = c * (W s) + b.
"""

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
    """

    values: Tensor | None
    events: Tensor | None = None


Traces = dict[str, SiteTrace]
"""What the sites of a block leave, by site."""


def encode(encoders: nn.ModuleDict, site: str, x: Float[Tensor, "*batch width"], traces: Traces) -> Spikes:
    """The spikes of an encoded site, whose trace is put with the others."""
    encoder = cast(SpikeEncoder, encoders[site])
    encoded: Spikes = encoder(x)
    events = encoded.values.abs().mean() if encoder.counts_events else None
    traces[site] = SiteTrace(encoded.values.detach(), events)
    return encoded


def encode_site(
    encoders: nn.ModuleDict, site: str, x: Float[Tensor, "*batch width"], traces: Traces
) -> Float[Tensor, "*batch width"]:
    """What the site's spikes stand for, as a recurrence reads it; `x` where nothing encodes it."""
    return encode(encoders, site, x, traces).dense() if site in encoders else x


def layer_input(encoders: nn.ModuleDict, site: str, x: Float[Tensor, "*batch width"], traces: Traces) -> LayerInput:
    """What the linear layers behind a site multiply: its spikes; `x` where nothing encodes it."""
    if site not in encoders:
        return LayerInput(x)
    values, scale, amplitude = encode(encoders, site, x, traces)
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
