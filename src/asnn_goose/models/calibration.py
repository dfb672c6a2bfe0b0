"""Starting values for what a copy leaves free: a mixer's timescales, erasing, and gains, from the teacher's attention.

Copied projections say what is written and read, but not how long it is kept, how strongly a new value takes an old
one's place, or how large a read must be. Each key/value head takes the timescale and erase rate of a grid whose
reads come nearest to what the teacher's heads found; each channel's gain is then the least-squares one, and the output
projection the ridge regression that stays near the copied one. No gradient is taken.
Thresholds of encoders at linear layers' inputs start where spikes come nearest to the dense student's activations.
The idea of setting these from attention statistics: Taylor-Calibrate (arXiv 2606.16429); grid and regression are ours.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from asnn_goose.models.folding import encoded_inputs
from asnn_goose.models.goose_mixer import LEAST_LOG_DECAY, GooseMixer
from asnn_goose.models.spiking_linear import layer_input
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.sublayers import AttentionRecord
from asnn_goose.spikes.calibrate import alpha_errors, best_alpha
from asnn_goose.spikes.encoder import SpikeEncoder, Spikes

TIMESCALES = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0)
"""Tokens after which a state has decayed to 1/e."""
ERASE_RATES = (0.02, 0.1, 0.3, 0.7)
GRID_TOKENS = 2048
"""Tokens on which the grid is searched; the regressions take all."""
RIDGE = 0.1
"""How strongly the output projection that is there holds, at first the copied one, as a multiple of the mean square of
what it reads."""
EPSILON = 1e-12
ENCODER_TOKENS = 4096
"""Tokens on which thresholds are searched for."""
ENCODER_ROWS = 8
"""Rows that pass through the student together then."""


@torch.no_grad()
def calibrate_from_attention(student: GooseForCausalLM, records: Sequence[AttentionRecord]) -> None:
    """Set decay, erase rate and gain of every mixer, given what the teacher's attention did in its place."""
    for mixer, record in zip(student.model.mixers(), records, strict=True):
        calibrate_mixer(cast(GooseMixer, mixer), record)


@torch.no_grad()
def calibrate_outputs(student: GooseForCausalLM, records: Sequence[AttentionRecord]) -> None:
    """Fit every mixer's output projection anew, to what it reads by now; nothing else changes."""
    for mixer, record in zip(student.model.mixers(), records, strict=True):
        goose = cast(GooseMixer, mixer)
        _fit_output(goose, goose.read(record.given.to(goose.head_norm.dtype)), record.output)


@torch.no_grad()
def calibrate_mixer(mixer: GooseMixer, record: AttentionRecord) -> None:
    """Set one mixer's decay, erase rate, gain and output projection; its input-dependent parts stay as they are."""
    dtype = mixer.head_norm.dtype
    given, found = record.given.to(dtype), record.found.to(dtype)
    rows = max(1, GRID_TOKENS // given.shape[1])
    _search_rates(mixer, given[:rows], found[:rows])
    read = mixer.read(given)
    products, squares = _moments(read, found)
    mixer.head_norm.copy_(products / squares.clamp_min(EPSILON))
    _fit_output(mixer, read, record.output)


@torch.no_grad()
def calibrate_encoders(student: GooseForCausalLM, input_ids: Int[Tensor, "batch time"]) -> None:
    """Set the threshold factor of each encoder that linear layers read and that keeps one of its own.

    It becomes the one of the least squared error on what the dense student's activations are there.
    """
    chosen, errors = set(calibrated_encoders(student)), dict[SpikeEncoder, Tensor]()

    def add(encoder: SpikeEncoder, x: Tensor) -> None:
        """Add the errors of one pass."""
        if encoder in chosen:
            found = alpha_errors(encoder, x)
            errors[encoder] = errors[encoder] + found if encoder in errors else found

    rows = max(1, ENCODER_TOKENS // input_ids.shape[1])
    with dense_encoders(student, add):
        for part in input_ids[:rows].split(ENCODER_ROWS):
            student.model(input_ids=part)
    for encoder, error in errors.items():
        cast(nn.Parameter, encoder.alpha).copy_(best_alpha(error))


def calibrated_encoders(student: GooseForCausalLM) -> list[SpikeEncoder]:
    """The encoders whose threshold factor is searched for."""
    return [encoder for encoder, _ in encoded_inputs(student) if encoder.stores_alpha]


@contextmanager
def dense_encoders(
    student: GooseForCausalLM, see: Callable[[SpikeEncoder, Tensor], None] = lambda encoder, x: None
) -> Iterator[None]:
    """Within the block, encoders pass on what they are given, and `see` is told of it; no block may be compiled."""

    def pass_on(encoder: Any, given: tuple[Tensor], encoded: Spikes) -> Spikes:
        """What came in, as if it were spikes of its size."""
        see(encoder, given[0])
        return Spikes(given[0], None, None)

    encoders = [module for module in student.modules() if isinstance(module, SpikeEncoder)]
    hooks = [encoder.register_forward_hook(pass_on) for encoder in encoders]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _search_rates(mixer: GooseMixer, given: Tensor, found: Tensor) -> None:
    """Give each key/value head the decay and erase rate that let its reads explain most."""
    heads = mixer.shape.key_value_heads
    pairs = [(1 / (timescale * -LEAST_LOG_DECAY), rate) for timescale in TIMESCALES for rate in ERASE_RATES]
    grid = torch.tensor(pairs, dtype=torch.float64).logit().to(mixer.rates.bias)  # candidates 2
    memory = mixer.initial_memory(given)
    inputs = mixer.inputs(given, memory)
    places, explained = torch.zeros(*given.shape[:2], 1, dtype=given.dtype, device=given.device), []
    for candidate in grid:
        # One rate for all heads and tokens: each head is then judged by itself.
        rates = mixer.rates.bias.clone().view(3, heads)
        rates[:2] = candidate.unsqueeze(1)
        read, _ = mixer.recall(replace(inputs, rates=rates.flatten() + places), memory.state)
        explained.append(_explained(read, found, heads))
    scores, best = torch.stack(explained).max(dim=0)  # heads
    chosen = grid[best].T  # decay and erase, heads
    mixer.rates.bias.view(3, heads)[:2] = torch.where(scores > 0, chosen, mixer.rates.bias.view(3, heads)[:2])


def _fit_output(mixer: GooseMixer, read: Tensor, target: Tensor) -> None:
    """W = argmin |n W^T - y|^2 + ridge |W - W_present|^2, in float64."""
    # The gate passes everything on as yet, so this is what the projection is given.
    projected = layer_input(mixer.encoders, "mixer_out", read * mixer.head_norm, {}).dense()
    reads, outputs = projected.flatten(0, 1).double(), target.flatten(0, 1).double()
    if mixer.output.bias is not None:
        outputs = outputs - mixer.output.bias.double()
    present = mixer.output.weight.double()
    squares = reads.T @ reads
    ridge = RIDGE * squares.diagonal().mean().clamp_min(EPSILON)
    identity = torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
    solved = torch.linalg.solve(squares + ridge * identity, reads.T @ outputs + ridge * present.T)
    mixer.output.weight.copy_(solved.T)


def _explained(read: Tensor, found: Tensor, heads: int) -> Float[Tensor, " heads"]:
    """How much of each key/value head's squared target the best gains explain."""
    products, squares = _moments(read, found)
    return (products.square() / squares.clamp_min(EPSILON)).view(heads, -1).sum(dim=1)


def _moments(read: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's sums of read times target and of squared read."""
    return (read * found).sum(dim=(0, 1)), read.square().sum(dim=(0, 1))
