"""The spike encoder: real activations in, integers in {-D..D} and their scale out.

With theta = clamp(alpha * mean|x|, 0.01, 10) per token over channels, step = 2 * theta and z = x / step,
values = sign(z) * min(D, floor(|z| + 1/2)). For D = 1 this is +1 above theta, -1 below -theta, else 0.
A binary encoder leaves out what is negative: values = min(D, max(0, floor(z + 1/2))), for D = 1 either 0 or 1.
A quantized one, the twin for comparison, rounds to as many levels with a step that follows the token's largest |x|, as
activations are usually quantized: theta = clamp(alpha * max|x| / (2 D), 0.01, 10).
The threshold looks at one token alone: a token's spikes depend neither on its batch nor on its future; on its past
only where an encoder has a membrane (`membrane.py`) or a threshold of running means (`threshold.py`), which is given
and returned like a recurrent state.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from asnn_goose.errors import MachineError
from asnn_goose.spikes.membrane import MembraneSpec, fire
from asnn_goose.spikes.surrogate import SurrogateSpec, staircase, surrogate_derivative
from asnn_goose.spikes.threshold import ThresholdSpec, mixed_sizes

THRESHOLD_RANGE = (0.01, 10.0)
# Fewer values than this are encoded sooner by torch than a compiled kernel is called (benchmarks/encoder.py): on an
# H200 forward and backward take 0.9 ms in Triton and 0.6 to 0.8 in torch up to 65,536 values, whatever their number.
LEAST_WORTHWHILE = {"cpu": 8_192, "cuda": 262_144}
# Channels that the GPU's kernel keeps in registers.
WIDEST_ON_GPU = 8_192

Kind = Literal["ternary", "binary", "quantized"]
Amplitude = Literal["none", "scalar", "channel", "group", "asymmetric"]
Scale = Literal["none", "token"]
JITTER = 0.1  # How far an amplitude that starts with a jitter may be from 1.


class Spikes(NamedTuple):
    """Integer spikes and the factors that give them back their size.

    `values` are integers held in a floating type; `token_scale` is the quantization step of each token, or
    None for unit spikes; `amplitude` is the learned factor, a scalar, one number a channel or one a value, or None;
    `membrane` is what the encoder remembers of each row after its last token: its membrane in steps, or the running
    sums of its threshold, where it has one of them.
    """

    values: Float[Tensor, "*batch width"]
    token_scale: Float[Tensor, "*batch 1"] | None
    amplitude: Float[Tensor, "*amplitude"] | None
    membrane: Float[Tensor, "batch state"] | None = None

    def dense(self) -> Float[Tensor, "*batch width"]:
        """The real numbers the spikes stand for: amplitude * step * values."""
        result = self.values
        if self.amplitude is not None:
            result = result * self.amplitude
        if self.token_scale is not None:
            result = result * self.token_scale
        return result


class SpikeEncoder(nn.Module):
    """Turns activations into spikes with a threshold that follows each token's mean magnitude.

    Args:
        width: Channels of the input.
        levels: Largest absolute spike value D; 1 is ternary.
        alpha: Threshold as a multiple of the token's mean |x|.
        learn_alpha: Whether alpha is a parameter; it then learns through the surrogate.
        amplitude: Learned factor on the spikes, started at 1: one, one a channel, one for `group_channels` neighbours,
            or one for positive and one for negative spikes (trained ternary quantization, Zhu et al. 2017).
        scale: `token` multiplies by the quantization step, `none` leaves unit spikes.
        surrogate: Stand-in derivative of the staircase.
        kind: `ternary` spikes have both signs, `binary` ones are not negative; `quantized` takes its step from the
            token's largest magnitude.
        group_channels: Channels of a group; the last group may have fewer.
        store_alpha: Whether alpha is one of the weights even if it does not learn, so that each layer may have its own.
        membrane: What carries on what spikes leave; None encodes each token by itself.
        threshold: How the threshold is made beside its factor; one factor and the token's mean |x| by default.
        jitter: Whether amplitudes start at 1 or, drawn from the global generator, within `JITTER` of it.
        amplitude_range: What amplitudes are clamped to where they are used, as recorded for v15r; None is not.

    Raises:
        ValueError: Fewer than one level or channel of a group, a membrane whose surrogate would pass it by, a threshold
            for each channel where spikes are multiplied by one step a token, or two memories at once.

    Source: threshold and straight-through estimator as recorded for ASNN-Goose v6 to v14; the derivative of
    the step size as in LSQ (Esser et al. 2020, eq. 3), with the surrogate in place of the indicator.
    """

    def __init__(
        self,
        width: int,
        levels: int = 1,
        alpha: float = 1.0,
        learn_alpha: bool = False,
        amplitude: Amplitude = "scalar",
        scale: Scale = "none",
        surrogate: SurrogateSpec | None = None,
        kind: Kind = "ternary",
        group_channels: int = 32,
        store_alpha: bool = False,
        membrane: MembraneSpec | None = None,
        threshold: ThresholdSpec | None = None,
        jitter: bool = False,
        amplitude_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if levels < 1 or group_channels < 1:
            raise ValueError(f"levels and group_channels must be at least 1, got {levels} and {group_channels}")
        self.width, self.levels, self.kind, self.scale = width, levels, kind, scale
        self.signed, self.surrogate, self.membrane = kind != "binary", surrogate or SurrogateSpec(), membrane
        if membrane is not None and self.surrogate.kind == "recorded_ste":
            raise ValueError("recorded_ste passes gradients by the staircase: give a membrane another surrogate")
        self.threshold, self.jitter, self.amplitude_range = threshold or ThresholdSpec(), jitter, amplitude_range
        mixes = self.threshold.channel_share > 0
        if scale == "token" and (mixes or self.threshold.channelwise):
            raise ValueError("thresholds that differ between a token's channels need scale none: it has one step")
        if mixes and (membrane is not None or kind == "quantized"):
            raise ValueError("a threshold of running means goes with no membrane and no quantized encoder")
        self.remembers = mixes or membrane is not None
        self.initial_alpha, self.learns_alpha, self.stores_alpha = alpha, learn_alpha, store_alpha
        stored = learn_alpha or store_alpha or self.threshold.scheduled
        factors = torch.empty((width,) if self.threshold.channelwise else ())
        self.alpha: nn.Parameter | float = nn.Parameter(factors, learn_alpha) if stored else alpha
        self.amplitude_kind, self.group_channels = amplitude, group_channels
        groups = -(-width // group_channels)
        shape: dict[Amplitude, tuple[int, ...]] = {
            "scalar": (), "channel": (width,), "group": (groups,), "asymmetric": (2,)
        }  # fmt: skip
        self.amplitude = nn.Parameter(torch.empty(shape[amplitude])) if amplitude != "none" else None
        # From 0, where the activations pass as they are, to 1, where they are spikes; None is 1 as well.
        self.hardness: Tensor | None
        self.register_buffer("hardness", None, persistent=False)
        # Whether an objective is to see how much it spikes.
        self.counts_events = False
        # Whether it is to see what the spikes stand for.
        self.shows_spikes = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set alpha to its starting value and every amplitude to 1, or near it if they are to differ."""
        if isinstance(self.alpha, nn.Parameter):
            nn.init.constant_(self.alpha, self.initial_alpha)
        if self.amplitude is not None and self.jitter:
            nn.init.uniform_(self.amplitude, 1.0 - JITTER, 1.0 + JITTER)
        elif self.amplitude is not None:
            nn.init.ones_(self.amplitude)

    def bounded_amplitude(self) -> Float[Tensor, "*amplitude"] | None:
        """The amplitudes as they are used: within their range, if they have one."""
        if self.amplitude is None or self.amplitude_range is None:
            return self.amplitude
        return self.amplitude.clamp(*self.amplitude_range)

    def channel_amplitude(self) -> Float[Tensor, " width"] | None:
        """The factor of each channel, where the factors go by channel."""
        amplitude = self.bounded_amplitude()
        if amplitude is None or self.amplitude_kind not in ("channel", "group"):
            return None
        if self.amplitude_kind == "channel":
            return amplitude
        return amplitude.repeat_interleave(self.group_channels)[: self.width]

    def quantize(self, z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The integer spikes of a normalized activation, without a gradient."""
        return staircase(z, self.levels, self.signed)

    def step(self, x: Float[Tensor, "*batch width"], alpha: float | Tensor) -> Float[Tensor, "*batch steps"]:
        """The quantization step of each token for a threshold factor, without a gradient to the activations."""
        size = x.detach().abs()
        if self.kind == "quantized":
            return token_step(alpha, size.amax(dim=-1, keepdim=True) / (2 * self.levels))
        return token_step(alpha, size.mean(dim=-1, keepdim=True))

    def forward(
        self,
        x: Float[Tensor, "*batch width"],
        membrane: Float[Tensor, "batch state"] | None = None,
        valid: Bool[Tensor, "batch time"] | None = None,
    ) -> Spikes:
        """Spikes of the activations; statistics and thresholds are computed in at least float32.

        An encoder that remembers takes [batch time width] and what it left before, zeros without; padding, where
        `valid` is False, leaves it as it was, and is silent where there is a membrane. That evolves by spikes whatever
        the hardness.
        """
        kernel = self._compiled_kernel(x)
        # The GPU's kernel reads half-width activations as they are, and its spikes are float32 all the same.
        if x.dtype != torch.float64 and (kernel is None or not x.is_cuda):
            x = x.float()
        if kernel is not None:
            limit = self.levels - 0.5 + self.surrogate.width if self.surrogate.kind == "clipped_ste" else math.inf
            values, step = kernel(
                x, float(self.alpha), THRESHOLD_RANGE, self.levels, limit, self.surrogate.gradient_scale
            )
        else:
            # transformers loads every weight as one that learns.
            held = isinstance(self.alpha, nn.Parameter) and not self.learns_alpha
            alpha = cast(nn.Parameter, self.alpha).detach() if held else self.alpha
            if self.threshold.channel_share > 0:
                sizes, membrane = mixed_sizes(x, self.threshold.channel_share, membrane, valid)
                step = token_step(alpha, sizes)
            else:
                step = self.step(x, alpha)
            if self.surrogate.kind == "recorded_ste":
                step = step.detach()
                values = self._recorded_values(x, step)
            else:
                z = x / step
                if self.membrane is None:
                    values = _Staircase.apply(z, self.levels, self.surrogate, self.signed)
                else:
                    values, membrane = fire(z, membrane, valid, self.membrane, self.levels, self.signed, self.surrogate)
                if self.hardness is not None:
                    # Exactly the spikes at 1, exactly the activations at 0.
                    values = torch.lerp(z, values, self.hardness.to(z.dtype))
        return Spikes(values, step if self.scale == "token" else None, self._factor(values), membrane)

    def _factor(self, values: Tensor) -> Tensor | None:
        """What the values are multiplied by: the amplitude, in a shape that goes with theirs."""
        amplitude = self.bounded_amplitude()
        if amplitude is None or self.amplitude_kind == "scalar":
            return amplitude
        if self.amplitude_kind == "asymmetric":
            return torch.where(values.detach() > 0, amplitude[0], amplitude[1])
        return self.channel_amplitude()

    def _compiled_kernel(self, x: Tensor) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """The numba or Triton form where it serves: no learning alpha, and a surrogate that clips or does not.

        Not inside torch.compile, which fuses the torch form with what stands before and behind it: there a kernel of
        its own would be a pass over memory more.
        """
        surrogate = self.kind == "ternary" and self.surrogate.kind in ("clipped_ste", "ste")
        written = surrogate and self.hardness is None and not (self.remembers or self.learns_alpha)
        if not written or torch.compiler.is_compiling() or x.numel() < LEAST_WORTHWHILE.get(x.device.type, math.inf):
            return None
        if not x.is_cuda:
            return _numba_encoder()
        if isinstance(self.alpha, nn.Parameter):
            # A number on the device would have to be waited for.
            return None
        return _triton_encoder() if x.dtype != torch.float64 and x.shape[-1] <= WIDEST_ON_GPU else None

    def _recorded_values(self, x: Tensor, step: Tensor) -> Tensor:
        # The notebooks' estimator is y = a * s + (x - stop(x)): dy/dx = 1 whatever the amplitude, dy/da = s,
        # and nothing reaches alpha. The bypass is exactly zero, so the values stay integers.
        values = self.quantize(x.detach() / step)
        amplitude = self._factor(values)
        factor = x.new_ones(()) if amplitude is None else amplitude.detach()
        if self.scale == "token":
            factor = factor * step
        # A silent amplitude hides the bypass with the spike: there is nothing to divide by.
        return values + (x - x.detach()) / factor.where(factor != 0, 1.0)


@cache
def _numba_encoder() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The numba form, or None where numba is not installed."""
    try:
        from asnn_goose.kernels.encoder_numba import encode_numba
    except MachineError:
        return None
    return encode_numba


@cache
def _triton_encoder() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """The Triton form, or None where triton is not installed."""
    try:
        from asnn_goose.kernels.encoder_triton import encode_triton
    except MachineError:
        return None
    return partial(encode_triton, values_dtype=torch.float32)


def token_step(alpha: float | Tensor, mean: Float[Tensor, "*batch sizes"]) -> Float[Tensor, "*batch steps"]:
    """The quantization step of tokens of the given mean magnitudes, one or one a channel: twice their threshold."""
    return 2.0 * (alpha * mean).clamp(*THRESHOLD_RANGE)


class _Staircase(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor, levels: int, surrogate: SurrogateSpec, signed: bool) -> Tensor:
        """The staircase itself, of both signs or of the positive one."""
        ctx.save_for_backward(z)
        ctx.levels, ctx.surrogate, ctx.signed = levels, surrogate, signed  # type: ignore[attr-defined]
        return staircase(z, levels, signed)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_values: Tensor) -> tuple[Tensor, None, None, None]:
        """The surrogate in place of a derivative that is zero almost everywhere."""
        (z,) = ctx.saved_tensors  # type: ignore[attr-defined]
        slope = surrogate_derivative(z, ctx.levels, ctx.surrogate, ctx.signed)  # type: ignore[attr-defined]
        return grad_values * slope, None, None, None
