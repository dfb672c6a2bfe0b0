"""The temperature of distillation as a module: given, learned with the student, or learned against it.

    learned   T = exp(log T), held between two bounds; adds weight * (T - target)^2
    ctkd      T = lower + (upper - lower) * sigmoid(raw), the gradient of raw times -lambda (Li et al. 2023)

T^2 is part of the loss that T is trained by. What learns is one float32 parameter.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asnn_goose import config_temperature as config
from asnn_goose.objectives.schedules import ScheduledNumbers

SIGN_SIZE = 0.01
"""Gradient that `gradient: sign` feeds at lambda 1: Adam divides its size away, and it must not fill a clipped norm."""
LEAST_DISTANCE = 1e-4
"""What a sigmoid keeps from its bounds when it goes on from a given temperature, as a share of their distance."""


class Heat(NamedTuple):
    """A temperature as the loss takes it.

    `value` is what the divergence divides logits by; `own` the same where it learns, whose gradient is not noted as the
    divergence's; `penalty` what it adds to the loss of each token, in nats.
    """

    value: float | Float[Tensor, ""]
    own: Float[Tensor, ""] | None = None
    penalty: Float[Tensor, ""] | None = None


class _Reversed(torch.autograd.Function):
    """Identity whose gradient is multiplied by a number; by one below 0 it is a reversal (Ganin and Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: Tensor) -> Tensor:
        """The tensor."""
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient times the number."""
        return gradient * ctx.factor, None


class _Noted(torch.autograd.Function):
    """Identity that adds its gradient to a tensor: what the loss's slope by the temperature is, before any reversal."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, note: Tensor) -> Tensor:
        """The tensor."""
        ctx.note = note
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient."""
        ctx.note.add_(gradient)
        return gradient, None


def scaled_gradient(tensor: Tensor, factor: Tensor) -> Tensor:
    """The tensor, whose gradient is multiplied by a number on the way back; a negative one reverses it."""
    scaled: Tensor = _Reversed.apply(tensor, factor)
    return scaled


def reversal_strength(chosen: config.AdversarialTemperature, step: int, whole: int) -> float:
    """Lambda for the step after `step` finished ones: 0 in the warm-up, then half a cosine up to `lambda_max`."""
    # Rounded, since 0.29 * 100 is just below 29.
    warmup = math.floor(round(chosen.warmup_share * whole, 9))
    if step < warmup:
        return 0.0
    share = min((step - warmup) / max(whole - warmup, 1), 1.0)
    return chosen.lambda_max * 0.5 * (1.0 - math.cos(math.pi * share))


class GivenTemperature(nn.Module):
    """A temperature that nothing trains.

    Args:
        value: A number, or a tensor that somebody keeps up to date.
    """

    raw: None = None
    slope: None = None

    def __init__(self, value: float | Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Heat:
        """The temperature."""
        return Heat(self.value)

    def settle(self) -> None:
        """Nothing has moved."""

    def figures(self) -> dict[str, Tensor]:
        """What metrics show."""
        return {"temperature": torch.as_tensor(self.value)}


class LearnedTemperature(nn.Module):
    """A temperature that minimizes the loss with the student.

    Args:
        chosen: Start, bounds and how they are kept.
        target: What the anchor draws to, a number or a tensor that somebody keeps up to date.
        device: Where it is.
    """

    def __init__(self, chosen: config.LearnedTemperature, target: float | Tensor, device: torch.device) -> None:
        super().__init__()
        self.chosen, self.target = chosen, target
        self.raw = nn.Parameter(torch.tensor(math.log(chosen.start), dtype=torch.float32, device=device))
        # No buffer: DDP would send those of the first process to all others.
        self.slope = torch.zeros((), device=device)

    def forward(self) -> Heat:
        """The temperature with its gradient, and the anchor."""
        own = self._temperature()
        anchor = self.chosen.anchor
        penalty = None if anchor is None else anchor.weight * (own - self.target) ** 2
        return Heat(_Noted.apply(own, self.slope), own, penalty)

    def _temperature(self) -> Tensor:
        if self.chosen.clamp == "recorded":
            return self.raw.exp().clamp(self.chosen.lower, self.chosen.upper)
        # Not clamped: `settle` keeps its logarithm inside, and at a bound every gradient still reaches it.
        return self.raw.exp()

    @torch.no_grad()
    def settle(self) -> None:
        """Move the logarithm back to the bound that an update took it beyond."""
        if self.chosen.clamp == "projected":
            self.raw.clamp_(math.log(self.chosen.lower), math.log(self.chosen.upper))

    @torch.no_grad()
    def go_on_from(self, temperature: Tensor) -> None:
        """Take over a temperature that was learned before."""
        self.raw.copy_(temperature.clamp(self.chosen.lower, self.chosen.upper).log())

    @torch.no_grad()
    def figures(self) -> dict[str, Tensor]:
        """What metrics show."""
        return {"temperature": self._temperature().clamp(self.chosen.lower, self.chosen.upper)}


class AdversarialTemperature(nn.Module):
    """A temperature that learns against the student (CTKD).

    Args:
        chosen: Start, bounds and what its gradient is.
        strength: Lambda, a tensor that somebody keeps up to date.
    """

    def __init__(self, chosen: config.AdversarialTemperature, strength: Tensor) -> None:
        super().__init__()
        self.chosen, self.strength = chosen, strength
        self.raw = nn.Parameter(torch.zeros((), device=strength.device))
        self.slope = torch.zeros((), device=strength.device)
        self.go_on_from(torch.tensor(chosen.start, dtype=torch.float64))

    def forward(self) -> Heat:
        """The temperature, behind what turns its gradient round."""
        own = self._temperature(scaled_gradient(self.raw, self._factor()))
        penalty = None
        if self.chosen.gradient == "sign":
            # Worth 0, with a gradient of lambda times a constant.
            penalty = SIGN_SIZE * self.strength * (self.raw - self.raw.detach())
        return Heat(_Noted.apply(own, self.slope), own, penalty)

    def _factor(self) -> Tensor:
        match self.chosen.gradient:
            case "reversed":
                return -self.strength
            case "plain":
                return self.strength
            case "sign":
                return torch.zeros_like(self.strength)

    def _temperature(self, raw: Tensor) -> Tensor:
        return self.chosen.lower + (self.chosen.upper - self.chosen.lower) * raw.sigmoid()

    def settle(self) -> None:
        """A sigmoid stays within its bounds."""

    @torch.no_grad()
    def go_on_from(self, temperature: Tensor) -> None:
        """Take over a temperature that was learned before."""
        share = (temperature - self.chosen.lower) / (self.chosen.upper - self.chosen.lower)
        self.raw.copy_(torch.logit(share, eps=LEAST_DISTANCE))

    @torch.no_grad()
    def figures(self) -> dict[str, Tensor]:
        """What metrics show."""
        return {"temperature": self._temperature(self.raw), "temperature_lambda": self.strength}


TemperatureModule = GivenTemperature | LearnedTemperature | AdversarialTemperature


def build_temperature(chosen: config.Temperature, numbers: ScheduledNumbers) -> TemperatureModule:
    """The module of a recipe's temperature; what it needs of schedules is added to `numbers`."""
    match chosen:
        case config.FixedTemperature():
            return GivenTemperature(chosen.value)
        case config.ScheduledTemperature():
            return GivenTemperature(numbers.follow("temperature", chosen.schedule))
        case config.LearnedTemperature():
            stated = None if chosen.anchor is None else chosen.anchor.target
            target = numbers.follow("temperature_anchor", chosen.start if stated is None else stated)
            return LearnedTemperature(chosen, target, numbers.device)
        case config.AdversarialTemperature():
            strength = numbers.tabulate(
                "temperature_lambda", lambda step, whole: reversal_strength(chosen, step, whole)
            )
            return AdversarialTemperature(chosen, strength)
