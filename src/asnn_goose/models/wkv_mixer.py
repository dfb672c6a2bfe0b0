"""The per-channel mixer: the recorded students' form, with a recurrence that is right."""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from asnn_goose.kernels.reference import recorded_scan
from asnn_goose.models.mixers import MixerMemory, MixerOutput, shift_tokens
from asnn_goose.models.recurrence import ScanBackend, linear_scan
from asnn_goose.models.rotary import Tables
from asnn_goose.models.spiking_linear import Before, Traces, encode_site, layer_input, membranes_after, spiking_linear
from asnn_goose.spikes.encoder import SpikeEncoder

# The recorded notebooks start every channel at sigmoid(-0.5) = 0.3775: nine tenths of a state is gone after 2.4 tokens.
RECORDED_DECAY_LOGIT = -0.5
# Timescales, in tokens, over which `decay_init="spread"` distributes the channels.
SHORTEST_TIMESCALE, LONGEST_TIMESCALE = 1.0, 1000.0


class WkvMixer(nn.Module):
    """The recorded students' mixer with a recurrence that is right.

    x_k, x_v, x_r mix the token with the one before it, a share for each channel; k = spikes(W_k x_k),
    v = spikes(W_v x_v), r = sigmoid(W_r x_r); S_t = d * S_{t-1} + k_t * v_t; the result is r * W_o S.

    Args:
        width: Channels.
        layer: Index of the block, from 0.
        layers: Number of blocks.
        encoders: Spike encoders of the sites `k`, `v` and `mixer_out`, which the output projection reads; a missing
            site stays dense. What the other projections read are three vectors, none of which is encoded.
        decay_init: `spread` places timescales of 1 to 1000 tokens across channels, `recorded` sigmoid(-0.5).
        mix_init: `spread` follows RWKV-4 (Peng et al. 2023, appendix), `recorded` is 1 - layer / (layers - 1).
        recurrence: `exact`, or `recorded` for the scan that forgets after about 25 tokens.
        backend: Implementation of the exact recurrence.
    """

    COPIED: ClassVar = frozenset[str]()
    """The parts that attention has too: none, its projections mean something else."""

    def __init__(
        self,
        width: int,
        layer: int,
        layers: int,
        encoders: dict[str, SpikeEncoder],
        decay_init: Literal["spread", "recorded"] = "spread",
        mix_init: Literal["spread", "recorded"] = "spread",
        recurrence: Literal["exact", "recorded"] = "exact",
        backend: ScanBackend = "auto",
    ) -> None:
        super().__init__()
        self.width, self.layer, self.layers = width, layer, layers
        self.decay_init, self.mix_init = decay_init, mix_init
        self.recurrence, self.backend = recurrence, backend
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.encoders = nn.ModuleDict(encoders)
        self.decay_logit = nn.Parameter(torch.empty(width))
        self.mix_key = nn.Parameter(torch.empty(width))
        self.mix_value = nn.Parameter(torch.empty(width))
        self.mix_receptance = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the recorded starting weights: projections N(0, 0.1 / sqrt(width)), decay and mixes as asked."""
        for projection in (self.key, self.value, self.receptance, self.output):
            nn.init.normal_(projection.weight, std=0.1 / math.sqrt(self.width))
        with torch.no_grad():
            self.decay_logit.copy_(self._initial_decay_logit())
            for mix, exponent in ((self.mix_key, 1.0), (self.mix_value, 1.0), (self.mix_receptance, 0.5)):
                mix.copy_(self._initial_mix(exponent))

    def _initial_decay_logit(self) -> Tensor:
        if self.decay_init == "recorded":
            return torch.full((self.width,), RECORDED_DECAY_LOGIT)
        timescales = torch.logspace(
            math.log10(SHORTEST_TIMESCALE), math.log10(LONGEST_TIMESCALE), self.width, dtype=torch.float64
        )
        return torch.logit(torch.exp(-1.0 / timescales)).float()

    def _initial_mix(self, exponent: float) -> Tensor:
        if self.mix_init == "recorded":
            return torch.full((self.width,), 1.0 - self.layer / max(self.layers - 1, 1))
        channel = torch.arange(self.width, dtype=torch.float64) / self.width
        return (channel ** (exponent * (1.0 - self.layer / self.layers))).float()

    def initial_memory(self, x: Float[Tensor, "batch time width"]) -> MixerMemory:
        """The memory before the first token: zeros, the state in float32 or, for float64 input, float64."""
        zeros = x.new_zeros(x.shape[0], self.width)
        return MixerMemory(state=zeros if x.dtype == torch.float64 else zeros.float(), shift=zeros)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        memory: MixerMemory | None = None,
        valid: Bool[Tensor, "batch time"] | None = None,
        tables: Tables | None = None,
    ) -> MixerOutput:
        """Mix normalized inputs over time; where `valid` is False the memory stays as it was.

        `tables` are other mixers' positions; this one knows time by its decay alone.
        """
        memory = memory or self.initial_memory(x)
        previous, shift = shift_tokens(x, memory.shift, valid)
        key = self.key(torch.lerp(previous, x, self.mix_key))
        value = self.value(torch.lerp(previous, x, self.mix_value))
        receptance = torch.sigmoid(self.receptance(torch.lerp(previous, x, self.mix_receptance)))
        traces: Traces = {}
        before = Before(memory.membranes, valid)
        key = encode_site(self.encoders, "k", key, traces, before)
        value = encode_site(self.encoders, "v", value, traces, before)
        states, final_state = self._scan(key, value, memory.state, valid)
        out = layer_input(self.encoders, "mixer_out", states.to(x.dtype), traces, before)
        residual: Tensor = receptance * spiking_linear(self.output, out)
        return MixerOutput(residual, MixerMemory(final_state, shift, membranes_after(traces)), traces)

    def _scan(self, key: Tensor, value: Tensor, state: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        decay = torch.sigmoid(self.decay_logit.to(state.dtype))
        if self.recurrence == "exact":
            return linear_scan(key, value, decay, state, valid, self.backend)
        return recorded_recurrence(key.to(state.dtype), value.to(state.dtype), decay, state, valid)


def recorded_recurrence(
    key: Float[Tensor, "batch time width"],
    value: Float[Tensor, "batch time width"],
    decay: Float[Tensor, " width"],
    state: Float[Tensor, "batch width"],
    valid: Bool[Tensor, "batch time"] | None,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
    """States of the recorded scan over the valid steps alone, and the last one.

    A carried state decays into the sequence as the exact recurrence has it: the notebooks always began at zero.
    """
    if valid is not None:
        # What the scan computes depends on how far a step is from its start, so padding must not lie before it.
        order = (~valid).long().argsort(dim=1, stable=True).unsqueeze(-1).expand_as(key)
        key, value = key.gather(1, order), value.gather(1, order)
    powers = decay ** torch.arange(1, key.shape[1] + 1, device=key.device, dtype=state.dtype).unsqueeze(-1)
    states = recorded_scan(key, value, decay) + powers * state.unsqueeze(1)
    if valid is not None:
        seen = valid.cumsum(dim=1).unsqueeze(-1).expand_as(states)
        states = torch.cat((state.unsqueeze(1), states), dim=1).gather(1, seen)
    return states, states[:, -1]
