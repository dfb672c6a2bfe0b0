"""What checks want to know of a student's encoders themselves: their values, their gradient, their amplitudes."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from asnn_goose.evaluation.student import site_encoders
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.spikes.encoder import SpikeEncoder

GRADIENT_ROWS, GRADIENT_TOKENS = 2, 16
ADAPTED = ("key", "value")
"""Projections of each mixer that test-time training adapts."""


@dataclass(frozen=True)
class EncoderEvidence:
    """What a student's encoders are and do.

    Attributes:
        spikes: Whether anything is encoded; a dense twin has nothing of what follows but `adaptable`.
        distinct_values: Distinct values of the first encoded site on the given rows, rounded to four decimals.
        strange_values: Values of that site that are not -1, 0 or 1.
        gradient_norm: Norm of the gradient through that encoder at random activations of a fixed seed.
        adaptable: Projections of k and v, which low-rank adapters would be put on.
        amplitudes: Every amplitude of every encoder.
        amplitude_gap: Largest difference of amplitudes of k and v over the layers; None where they have none.
    """

    spikes: bool
    distinct_values: int | None
    strange_values: int | None
    gradient_norm: float | None
    adaptable: int
    amplitudes: tuple[float, ...]
    amplitude_gap: float | None


def encoder_evidence(student: GooseForCausalLM, ids: Int[Tensor, "batch time"]) -> EncoderEvidence:
    """What the encoders do on the given rows, in one pass of the student without gradients."""
    student.eval()
    with torch.no_grad():
        spikes = student.model(input_ids=ids, output_spikes=True).spikes
    encoders = site_encoders(student)
    first = next(iter(encoders), None)
    values = None
    if first is not None:
        layer, site = first.removeprefix("layer_").split(".")
        values = spikes[int(layer)][site].double().round(decimals=4).unique()
    learned = [found.detach().flatten() for entry in encoders.values() if (found := entry.amplitude) is not None]
    linear = [name for name, module in student.named_modules() if isinstance(module, nn.Linear)]
    return EncoderEvidence(
        spikes=bool(encoders),
        distinct_values=None if values is None else len(values),
        strange_values=None if values is None else sum(value not in (-1.0, 0.0, 1.0) for value in values.tolist()),
        gradient_norm=None if first is None else gradient_norm(encoders[first]),
        adaptable=sum(name.rpartition(".")[2] in ADAPTED for name in linear),
        amplitudes=tuple(torch.cat(learned).tolist()) if learned else (),
        amplitude_gap=amplitude_gap(encoders),
    )


def gradient_norm(encoder: SpikeEncoder) -> float:
    """Norm of the gradient of the sum of an encoder's spikes, at normally distributed activations of a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    device = next((weight.device for weight in encoder.parameters()), torch.device("cpu"))
    x = torch.randn(GRADIENT_ROWS, GRADIENT_TOKENS, encoder.width, generator=generator).to(device).requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(encoder(x).dense().sum(), x)
    return float(gradient.norm())


def amplitude_gap(encoders: dict[str, SpikeEncoder]) -> float | None:
    """Largest |a_k - a_v| over layers and channels; None where no layer has both, or they are of different forms.

    The recurrence of k * v sees their product alone, so that equal starts stay equal to the bit.
    """
    gaps = []
    for name, key in encoders.items():
        value = encoders.get(f"{name.removesuffix('.k')}.v") if name.endswith(".k") else None
        if value is None or key.amplitude is None or value.amplitude is None:
            continue
        if key.amplitude.shape == value.amplitude.shape:
            gaps.append(float((key.amplitude - value.amplitude).detach().abs().max()))
    return max(gaps, default=None)
