"""The spike encoder: real activations in, integers in {-D..D} and their scale out.

With theta = clamp(alpha * mean|x|, 0.01, 10) per token over channels, step = 2 * theta and z = x / step,
values = sign(z) * min(D, floor(|z| + 1/2)). For D = 1 this is +1 above theta, -1 below -theta, else 0.
The threshold looks at one token alone: a token's spikes depend neither on its batch nor on its future.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from asnn_goose.errors import MachineError
from asnn_goose.spikes.surrogate import SurrogateSpec, surrogate_derivative

THRESHOLD_RANGE = (0.01, 10.0)
# Fewer values than this are encoded sooner by torch than a compiled kernel is called (benchmarks/encoder.py): on an
# H200 forward and backward take 0.9 ms in Triton and 0.6 to 0.8 in torch up to 65,536 values, whatever their number.
LEAST_WORTHWHILE = {"cpu": 8_192, "cuda": 262_144}
# Channels that the GPU's kernel keeps in registers.
WIDEST_ON_GPU = 8_192

Amplitude = Literal["none", "scalar", "channel"]
Scale = Literal["none", "token"]


class Spikes(NamedTuple):
    """Integer spikes and the factors that give them back their size.

    `values` are integers held in a floating type; `token_scale` is the quantization step of each token, or
    None for unit spikes; `amplitude` is the learned factor, a scalar or one number a channel, or None.
    """

    values: Float[Tensor, "*batch width"]
    token_scale: Float[Tensor, "*batch 1"] | None
    amplitude: Float[Tensor, "*amplitude"] | None

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
        amplitude: Learned factor on the spikes, started at 1.
        scale: `token` multiplies by the quantization step, `none` leaves unit spikes.
        surrogate: Stand-in derivative of the staircase.

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
    ) -> None:
        super().__init__()
        self.levels = levels
        self.scale = scale
        self.surrogate = surrogate or SurrogateSpec()
        self.initial_alpha = alpha
        self.alpha: nn.Parameter | float = nn.Parameter(torch.empty(())) if learn_alpha else alpha
        shape: dict[Amplitude, tuple[int, ...]] = {"scalar": (), "channel": (width,)}
        self.amplitude = nn.Parameter(torch.empty(shape[amplitude])) if amplitude != "none" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set alpha to its starting value and every amplitude to 1."""
        if isinstance(self.alpha, nn.Parameter):
            nn.init.constant_(self.alpha, self.initial_alpha)
        if self.amplitude is not None:
            nn.init.ones_(self.amplitude)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Spikes:
        """Spikes of the activations; statistics and thresholds are computed in at least float32."""
        kernel = self._compiled_kernel(x)
        # The GPU's kernel reads half-width activations as they are, and its spikes are float32 all the same.
        if x.dtype != torch.float64 and (kernel is None or not x.is_cuda):
            x = x.float()
        if kernel is not None:
            limit = self.levels - 0.5 + self.surrogate.width if self.surrogate.kind == "clipped_ste" else math.inf
            values, step = kernel(
                x, cast(float, self.alpha), THRESHOLD_RANGE, self.levels, limit, self.surrogate.gradient_scale
            )
            return Spikes(values, step if self.scale == "token" else None, self.amplitude)
        threshold = (self.alpha * x.detach().abs().mean(dim=-1, keepdim=True)).clamp(*THRESHOLD_RANGE)
        step = 2.0 * threshold
        if self.surrogate.kind == "recorded_ste":
            step = step.detach()
            return Spikes(self._recorded_values(x, step), step if self.scale == "token" else None, self.amplitude)
        values = _Staircase.apply(x / step, self.levels, self.surrogate)
        return Spikes(values, step if self.scale == "token" else None, self.amplitude)

    def _compiled_kernel(self, x: Tensor) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """The numba or Triton form where it serves: for a given alpha, and a surrogate that clips or does not.

        Not inside torch.compile, which fuses the torch form with what stands before and behind it: there a kernel of
        its own would be a pass over memory more.
        """
        written = not isinstance(self.alpha, nn.Parameter) and self.surrogate.kind in ("clipped_ste", "ste")
        if not written or torch.compiler.is_compiling() or x.numel() < LEAST_WORTHWHILE.get(x.device.type, math.inf):
            return None
        if not x.is_cuda:
            return _numba_encoder()
        return _triton_encoder() if x.dtype != torch.float64 and x.shape[-1] <= WIDEST_ON_GPU else None

    def _recorded_values(self, x: Tensor, step: Tensor) -> Tensor:
        # The notebooks' estimator is y = a * s + (x - stop(x)): dy/dx = 1 whatever the amplitude, dy/da = s,
        # and nothing reaches alpha. The bypass is exactly zero, so the values stay integers.
        values = staircase(x.detach() / step, self.levels)
        factor = x.new_ones(()) if self.amplitude is None else self.amplitude.detach()
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


def staircase(z: Float[Tensor, "*shape"], levels: int) -> Float[Tensor, "*shape"]:
    """sign(z) * min(levels, floor(|z| + 1/2)): the integer spikes of a normalized activation."""
    return z.sign() * (z.abs() + 0.5).floor().clamp_max(levels)


class _Staircase(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor, levels: int, surrogate: SurrogateSpec) -> Tensor:
        """The staircase itself."""
        ctx.save_for_backward(z)
        ctx.levels, ctx.surrogate = levels, surrogate  # type: ignore[attr-defined]
        return staircase(z, levels)

    @staticmethod
    def backward(ctx: FunctionCtx, grad_values: Tensor) -> tuple[Tensor, None, None]:
        """The surrogate in place of a derivative that is zero almost everywhere."""
        (z,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_values * surrogate_derivative(z, ctx.levels, ctx.surrogate), None, None  # type: ignore[attr-defined]
