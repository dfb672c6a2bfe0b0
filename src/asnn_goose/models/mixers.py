"""What the student's token mixers share, and the feed-forward part."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from asnn_goose.models.joint_linear import joinable, joint_linear
from asnn_goose.models.spiking_linear import Before, LayerInput, Traces, layer_input, spiking_linear
from asnn_goose.spikes.encoder import SpikeEncoder

TRITON = find_spec("triton") is not None
if TRITON:
    from asnn_goose.kernels.swiglu_triton import swiglu_triton


@dataclass(frozen=True)
class MixerMemory:
    """What a mixer carries from one call to the next.

    Attributes:
        state: Recurrent state: [batch width] for wkv, [batch heads value key] for goose.
        shift: What the next token still needs of the last valid ones: for wkv the normalized input [batch width], for
            goose the tails of its convolution [batch taps channels].
        membranes: Of encoders that have one, [batch width], by site.
    """

    state: Float[Tensor, "batch ..."]
    shift: Float[Tensor, "batch ..."]
    membranes: Mapping[str, Float[Tensor, "batch width"]] = field(default_factory=dict)


@dataclass(frozen=True)
class MixerOutput:
    """A mixer's contribution to the residual stream, its new memory, and what its sites leave."""

    residual: Float[Tensor, "batch time width"]
    memory: MixerMemory
    traces: Traces


def shift_tokens(
    x: Float[Tensor, "batch time width"],
    before: Float[Tensor, "batch width"],
    valid: Bool[Tensor, "batch time"] | None,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
    """Each position's last valid predecessor, and the last valid token itself to carry on.

    `before` stands in where there is no predecessor. Positions that are not valid are passed over.
    """
    extended = torch.cat((before.to(x.dtype).unsqueeze(1), x), dim=1)  # batch 1+time width
    if valid is None:
        return extended[:, :-1], extended[:, -1]
    positions = torch.arange(1, x.shape[1] + 1, device=x.device)
    last_valid = torch.where(valid, positions, 0).cummax(dim=1).values  # batch time; 0 points at `before`
    latest = torch.cat((torch.zeros_like(last_valid[:, :1]), last_valid), dim=1)
    gathered = extended.gather(1, latest.unsqueeze(-1).expand(-1, -1, x.shape[2]))
    return gathered[:, :-1], gathered[:, -1]


class FeedForward(nn.Module):
    """W_2 f(W_1 x), or for swiglu W_2 (silu(W_g x) * W_1 x).

    Args:
        width: Channels in and out.
        inner_width: Channels between the projections.
        activation: `silu`, `gelu` (tanh form) or `swiglu`.
        bias: Whether the projections have biases.
        encoders: Spike encoders of the sites `ffn_in` and `ffn_mid`; a missing site stays dense.
        output_norm: Norm of what the second projection reads, or None.
    """

    def __init__(
        self,
        width: int,
        inner_width: int,
        activation: Literal["silu", "gelu", "swiglu"],
        bias: bool = False,
        encoders: dict[str, SpikeEncoder] | None = None,
        output_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, inner_width, bias=bias)
        self.gate = nn.Linear(width, inner_width, bias=bias) if activation == "swiglu" else None
        self.down = nn.Linear(inner_width, width, bias=bias)
        self.encoders = nn.ModuleDict(encoders or {})
        self.output_norm = output_norm

    def reset_parameters(self) -> None:
        """Draw PyTorch's default linear weights, as recorded."""
        for projection in (self.up, self.gate, self.down):
            if projection is not None:
                projection.reset_parameters()

    def forward(
        self, x: Float[Tensor, "batch time width"], before: Before | None = None
    ) -> tuple[Float[Tensor, "batch time width"], Traces]:
        """The feed-forward contribution to the residual stream, and what its sites leave."""
        traces: Traces = {}
        hidden = self._hidden(layer_input(self.encoders, "ffn_in", x, traces, before))
        hidden = hidden if self.output_norm is None else self.output_norm(hidden)
        return spiking_linear(self.down, layer_input(self.encoders, "ffn_mid", hidden, traces, before)), traces

    def _hidden(self, given: LayerInput) -> Float[Tensor, "batch time inner"]:
        """What stands between the projections."""
        if self.gate is not None and joinable(given.values, (self.gate, self.up)):
            both, inner = joint_linear(given.values, (self.gate, self.up), given.scale), self.up.out_features
            if TRITON and both.is_cuda and both.dtype != torch.float64:
                return swiglu_triton(both, inner)
            return functional.silu(both[..., :inner]) * both[..., inner : 2 * inner]
        hidden = spiking_linear(self.up, given)
        if self.gate is not None:
            return functional.silu(spiking_linear(self.gate, given)) * hidden
        if self.activation == "gelu":
            return functional.gelu(hidden, approximate="tanh")
        return functional.silu(hidden)
