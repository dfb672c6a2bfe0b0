"""The matrix-state mixer for converted transformers: the generalised delta rule between a teacher's projections."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from asnn_goose.models.convolution import following_tail, short_convolution
from asnn_goose.models.delta import DeltaBackend, delta_rule
from asnn_goose.models.fused_inputs import fused_inputs, fusible
from asnn_goose.models.joint_linear import joinable, joint_linear
from asnn_goose.models.mixers import MixerMemory, MixerOutput
from asnn_goose.models.rotary import RotaryPositions, Tables, turn
from asnn_goose.models.spiking_linear import (
    Before,
    LayerInput,
    Traces,
    encode_site,
    layer_input,
    membranes_after,
    spiking_linear,
)
from asnn_goose.spikes.encoder import SpikeEncoder

LEAST_LOG_DECAY = -math.exp(-0.5)
"""-0.6065: a step keeps at least 0.545 of the state (RWKV-7, Peng et al. 2025, section 4)."""
SHORTEST_TIMESCALE, LONGEST_TIMESCALE = 8.0, 1000.0
STARTING_ERASE, STARTING_WRITE = 0.02, 0.9
NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class GooseShape:
    """Sizes of a `GooseMixer`.

    Attributes:
        width: Channels of the residual stream.
        heads: Heads that read.
        key_value_heads: Heads that hold a state; each is read by heads / key_value_heads.
        head_width: Channels of a head.
        bias: Whether r, k and v have biases.
        output_bias: Whether the output projection has one.
        key_norm: Whether r and k pass an RMS norm a head, as in Qwen3.
        norm_eps: Constant of that norm.
        convolution: Taps of the short causal convolution behind the projections; 1 is none.
        gate_rank: Rank of the output gate's two factors; 0 is no gate.
        output_norm: Whether what the output projection reads is normalized, all heads together.
    """

    width: int
    heads: int
    key_value_heads: int
    head_width: int
    bias: bool = False
    output_bias: bool = False
    key_norm: bool = False
    norm_eps: float = 1e-6
    convolution: int = 4
    gate_rank: int = 32
    output_norm: bool = False

    @property
    def read_width(self) -> int:
        """Channels of r, and of what is read."""
        return self.heads * self.head_width

    @property
    def state_width(self) -> int:
        """Channels of k, and of v."""
        return self.key_value_heads * self.head_width


@dataclass(frozen=True)
class GooseInputs:
    """What a mixer makes of its input before it looks at its state.

    Attributes:
        receptance: r, [batch time key/value-heads group head].
        key: k, [batch time key/value-heads head].
        value: v, [batch time key/value-heads head].
        rates: Decay, erase and write as logits, one each a key/value head.
        gate: The gate between its two factors, or None.
        tail: Of the convolution, for the next call.
        traces: What its sites leave.
    """

    receptance: Tensor
    key: Tensor
    value: Tensor
    rates: Float[Tensor, "batch time rates"]
    gate: Float[Tensor, "batch time rank"] | None
    tail: Float[Tensor, "batch earlier channels"]
    traces: Traces


class GooseMixer(nn.Module):
    """S_t = S_{t-1} (w_t I - a_t k_t k_t^T) + b_t v_t k_t^T for each key/value head, read by y_t = S_t r_t.

    r, k, v are projections of the input, each passed through a short causal convolution, r and k turned by position
    where there are rotary positions, k and v then encoded as spikes; k is divided by its length where that exceeds 1,
    so a silent key stays finite. w, a, b are one number a head that depends on the input. What is read is normalized
    a head, gated, and projected back.

    Args:
        shape: Sizes.
        encoders: Spike encoders by site: `k` and `v`, and what linear layers read: `mixer_in` (r, k, v, rates and the
            gate's first factor), `gate_mid` (its second) and `mixer_out` (the output); a missing site stays dense.
        rotary: Rotary positions of the teacher, or None.
        backend: Implementation of the recurrence.
    """

    COPIED: ClassVar = frozenset({"receptance", "key", "value", "output", "receptance_norm", "key_norm"})
    """The parts that attention has too."""

    def __init__(
        self,
        shape: GooseShape,
        encoders: dict[str, SpikeEncoder],
        rotary: RotaryPositions | None = None,
        backend: DeltaBackend = "auto",
    ) -> None:
        super().__init__()
        self.shape, self.backend, self.rotary = shape, backend, rotary
        self.receptance = nn.Linear(shape.width, shape.read_width, bias=shape.bias)
        self.key = nn.Linear(shape.width, shape.state_width, bias=shape.bias)
        self.value = nn.Linear(shape.width, shape.state_width, bias=shape.bias)
        self.output = nn.Linear(shape.read_width, shape.width, bias=shape.output_bias)
        channels = shape.read_width + 2 * shape.state_width
        self.taps = nn.Parameter(torch.empty(shape.convolution, channels))
        self.rates = nn.Linear(shape.width, 3 * shape.key_value_heads)
        self.head_norm = nn.Parameter(torch.empty(shape.read_width))
        self.gate_down = nn.Linear(shape.width, shape.gate_rank, bias=False) if shape.gate_rank else None
        self.gate_up = nn.Linear(shape.gate_rank, shape.read_width, bias=False) if shape.gate_rank else None
        self.receptance_norm = nn.RMSNorm(shape.head_width, eps=shape.norm_eps) if shape.key_norm else None
        self.key_norm = nn.RMSNorm(shape.head_width, eps=shape.norm_eps) if shape.key_norm else None
        self.output_norm = nn.RMSNorm(shape.read_width, eps=shape.norm_eps) if shape.output_norm else None
        self.encoders = nn.ModuleDict(encoders)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw projections N(0, 1 / width); start the rest so that the layer is linear attention with a slow decay.

        The convolution passes its input on, the gate is 1, and timescales of 8 to 1000 tokens are spread over heads.
        """
        for projection in (self.receptance, self.key, self.value, self.output):
            nn.init.normal_(projection.weight, std=1 / math.sqrt(projection.in_features))
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.taps)
        nn.init.ones_(self.taps[0])
        nn.init.ones_(self.head_norm)
        nn.init.zeros_(self.rates.weight)
        self.rates.bias.copy_(self._starting_rates())
        if self.gate_down is not None and self.gate_up is not None:
            nn.init.normal_(self.gate_down.weight, std=1 / math.sqrt(self.shape.width))
            nn.init.zeros_(self.gate_up.weight)

    def _starting_rates(self) -> Tensor:
        heads = self.shape.key_value_heads
        ratio = (LONGEST_TIMESCALE / SHORTEST_TIMESCALE) ** (1 / max(heads - 1, 1))
        shares = [1 / (SHORTEST_TIMESCALE * ratio**head) / -LEAST_LOG_DECAY for head in range(heads)]
        return torch.tensor([_logit(p) for p in (*shares, *[STARTING_ERASE] * heads, *[STARTING_WRITE] * heads)])

    def initial_memory(self, x: Float[Tensor, "batch time width"]) -> MixerMemory:
        """The memory before the first token: zeros, the state in float32 or, for float64 input, float64."""
        shape = self.shape
        state = x.new_zeros(
            x.shape[0], shape.key_value_heads, shape.head_width, shape.head_width,
            dtype=torch.float64 if x.dtype == torch.float64 else torch.float32,
        )  # fmt: skip
        return MixerMemory(state, x.new_zeros(x.shape[0], shape.convolution - 1, self.taps.shape[1]))

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        memory: MixerMemory | None = None,
        valid: Bool[Tensor, "batch time"] | None = None,
        tables: Tables | None = None,
    ) -> MixerOutput:
        """Mix normalized inputs over time; where `valid` is False the memory stays as it was.

        `tables` are those of the rotary positions; without them the first token's position is 0.
        """
        memory = memory or self.initial_memory(x)
        inputs = self.inputs(x, memory, valid, tables)
        read, state = self.recall(inputs, memory.state, valid)
        traces, gated, before = inputs.traces, read.to(x.dtype) * self.head_norm, Before(memory.membranes, valid)
        if self.gate_up is not None and inputs.gate is not None:
            gate = spiking_linear(self.gate_up, layer_input(self.encoders, "gate_mid", inputs.gate, traces, before))
            gated = gated * 2 * torch.sigmoid(gate)
        gated = gated if self.output_norm is None else self.output_norm(gated)
        residual = spiking_linear(self.output, layer_input(self.encoders, "mixer_out", gated, traces, before))
        return MixerOutput(residual, MixerMemory(state, inputs.tail, membranes_after(traces)), traces)

    def inputs(
        self,
        x: Float[Tensor, "batch time width"],
        memory: MixerMemory,
        valid: Bool[Tensor, "batch time"] | None = None,
        tables: Tables | None = None,
    ) -> GooseInputs:
        """All that depends on the input alone, not on the state."""
        shape = self.shape
        channels, dtype = self.taps.shape[1], _recurrence_dtype(x, memory.state)
        if tables is None and self.rotary is not None:
            tables = self.rotary.tables(torch.arange(x.shape[1], device=x.device).unsqueeze(0), x.dtype)
        seen: Traces = {}
        given = layer_input(self.encoders, "mixer_in", x, seen, Before(memory.membranes, valid))
        projected = self._project(given)
        joint = projected.shape[-1] > channels
        heads = shape.heads, shape.key_value_heads, shape.head_width
        fuses = valid is None and self.key_norm is None and self.backend in ("auto", "triton")
        if fuses and fusible(projected, self.taps, heads, self.encoders):
            tail = following_tail(projected[..., :channels], memory.shift)
            parts, rest, traces = fused_inputs(projected, self.taps, memory.shift, tables, heads, self.encoders, dtype)
        else:
            rest = projected[..., channels:]
            parts, tail, traces = self._plain_inputs(projected[..., :channels], memory, valid, tables)
        r, k, v = (part.unflatten(-1, (-1, shape.head_width)).to(dtype) for part in parts)
        if joint:
            gate = None if self.gate_down is None else rest[..., : shape.gate_rank]
            rates = rest[..., shape.gate_rank :][..., : self.rates.out_features]
        else:
            gate = None if self.gate_down is None else spiking_linear(self.gate_down, given)
            rates = spiking_linear(self.rates, given)
        return GooseInputs(r.unflatten(2, (shape.key_value_heads, -1)), k, v, rates, gate, tail, seen | traces)

    def _project(self, given: LayerInput) -> Tensor:
        """r, k and v side by side; where they are one product, the gate's inner part and the rates stand behind."""
        layers = (self.receptance, self.key, self.value, self.gate_down, self.rates)
        if joinable(given.values, layers):
            return joint_linear(given.values, [layer for layer in layers if layer is not None], given.scale)
        return torch.cat([spiking_linear(layer, given) for layer in (self.receptance, self.key, self.value)], dim=-1)

    def _plain_inputs(
        self, projected: Tensor, memory: MixerMemory, valid: Tensor | None, tables: Tables | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Traces]:
        """r, k and v as the recurrence takes them, the tail of the convolution, and what the sites leave."""
        shape = self.shape
        projected, tail = short_convolution(projected, self.taps, memory.shift, valid)
        r, k, v = projected.split((shape.read_width, shape.state_width, shape.state_width), dim=-1)
        r, k = self._turn(r, k, tables)
        traces: Traces = {}
        before = Before(memory.membranes, valid)
        k = encode_site(self.encoders, "k", k, traces, before)
        v = encode_site(self.encoders, "v", v, traces, before)
        long = k.unflatten(-1, (-1, shape.head_width)).to(memory.state.dtype)
        k = long * long.square().sum(dim=-1, keepdim=True).clamp_min(1).rsqrt()
        return (r, k.flatten(2), v), tail, traces

    def read(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time read"]:
        """What the states give from the first token on, each head normalized, before gain, gate and output."""
        memory = self.initial_memory(x)
        read, _ = self.recall(self.inputs(x, memory), memory.state)
        return read.to(x.dtype)

    def recall(
        self, inputs: GooseInputs, state: Tensor, valid: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch time read"], Tensor]:
        """What is read, each head normalized, and the last state."""
        decay, erase, write = torch.sigmoid(inputs.rates.to(state.dtype)).chunk(3, dim=-1)
        log_decay = LEAST_LOG_DECAY * decay
        read, state = delta_rule(
            inputs.receptance, inputs.key, inputs.value, log_decay, erase, write, state, valid, self.backend
        )
        read = read.to(state.dtype)
        normed = read * torch.rsqrt(read.square().mean(dim=-1, keepdim=True) + NORM_EPSILON)
        return normed.flatten(2), state

    def _turn(self, r: Tensor, k: Tensor, tables: Tables | None) -> tuple[Tensor, Tensor]:
        if tables is None and self.key_norm is None:
            return r, k
        r, k = (part.unflatten(-1, (-1, self.shape.head_width)) for part in (r, k))
        if self.receptance_norm is not None and self.key_norm is not None:
            r, k = self.receptance_norm(r), self.key_norm(k)
        if tables is not None:
            r, k = turn(r, tables), turn(k, tables)
        return r.flatten(2), k.flatten(2)


def _recurrence_dtype(x: Tensor, state: Tensor) -> torch.dtype:
    """What r, k and v are kept in: half the bytes under bfloat16 autocast on a GPU, else the state's own dtype."""
    if x.is_cuda and torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16:
        return torch.bfloat16
    return state.dtype


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
