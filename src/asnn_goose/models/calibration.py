"""Starting values for what a copy leaves free: a mixer's timescales, erasing, and gains, from the teacher's attention.

Copied projections say what is written and read, but not how long it is kept, how strongly a new value takes an old
one's place, or how large a read must be. Each key/value head takes the timescale and erase rate of a grid whose
reads come nearest to what the teacher's heads found; each channel's gain is then the least-squares one, and the output
projection the ridge regression that stays near the copied one. No gradient is taken.
Thresholds of encoders start where spikes come nearest to the dense student's activations.
The idea of setting these from attention statistics: Taylor-Calibrate (arXiv 2606.16429); grid and regression are ours.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from asnn_goose.models.block import GooseBlock
from asnn_goose.models.goose_mixer import LEAST_LOG_DECAY, GooseMixer
from asnn_goose.models.spiking_linear import layer_input
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.sublayers import BlockRecord, SublayerRecord
from asnn_goose.spikes.calibrate import alpha_errors, best_alpha, factor_events, quiet_alpha
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
def calibrate_from_attention(student: GooseForCausalLM, records: Sequence[BlockRecord]) -> None:
    """Set decay, erase rate and gain of every mixer, given what the teacher's attention did in its place."""
    for mixer, given, record in _recorded_mixers(student, records):
        calibrate_mixer(mixer, given, record)


@torch.no_grad()
def calibrate_outputs(student: GooseForCausalLM, records: Sequence[BlockRecord]) -> None:
    """Fit every mixer's output projection anew, to what it reads by now; nothing else changes."""
    for mixer, given, record in _recorded_mixers(student, records):
        _fit_output(mixer, mixer.read(given), record.output)


@torch.no_grad()
def calibrate_mixer(mixer: GooseMixer, given: Float[Tensor, "batch time width"], record: SublayerRecord) -> None:
    """Set one mixer's decay, erase rate, gain and output projection, given what its norm makes of the stream.

    Its input-dependent parts stay as they are.
    """
    found = cast(Tensor, record.found).to(given.dtype)
    rows = max(1, GRID_TOKENS // given.shape[1])
    _search_rates(mixer, given[:rows], found[:rows])
    read = mixer.read(given)
    products, squares = _moments(read, found)
    mixer.head_norm.copy_(products / squares.clamp_min(EPSILON))
    _fit_output(mixer, read, record.output)


@torch.no_grad()
def calibrate_encoders(student: GooseForCausalLM, input_ids: Int[Tensor, "batch time"]) -> None:
    """Set the threshold factor of each encoder that keeps one of its own.

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


@torch.no_grad()
def limit_events(
    student: GooseForCausalLM, input_ids: Int[Tensor, "batch time"], wanted: Mapping[SpikeEncoder, float]
) -> None:
    """Raise threshold factors that are kept to where the dense student's activations make so many events at most.

    Where a factor is above that already, it stays. With fewer events from the first step on, what an objective says of
    them has little left to pull at.
    """
    seen = {encoder: 0 for encoder in wanted if isinstance(encoder.alpha, nn.Parameter)}
    events: dict[SpikeEncoder, Tensor] = {}

    def add(encoder: SpikeEncoder, x: Tensor) -> None:
        """Add the events of one pass."""
        if encoder in seen:
            seen[encoder] += x.numel()
            found = factor_events(encoder, x)
            events[encoder] = events[encoder] + found if encoder in events else found

    with dense_encoders(student, add):
        for part in input_ids[: max(1, ENCODER_TOKENS // input_ids.shape[1])].split(ENCODER_ROWS):
            student.model(input_ids=part)
    for encoder, found in events.items():
        alpha = cast(nn.Parameter, encoder.alpha)
        alpha.clamp_(min=quiet_alpha(found, wanted[encoder] * seen[encoder]).to(alpha.dtype))


def output_norms(student: GooseForCausalLM) -> list[nn.RMSNorm]:
    """The norms before sublayers' last projections, where the student has them."""
    named = student.model.layers.named_modules()
    return [cast(nn.RMSNorm, module) for name, module in named if name.endswith(".output_norm")]


@torch.no_grad()
def fit_output_norms(student: GooseForCausalLM, input_ids: Int[Tensor, "batch time"]) -> None:
    """Set the gains of norms before last projections to what brings these nearest to reading what they did without.

    With n = x / rms(x): the least-squares gain of each channel, sum(x n) / sum(n^2), on the dense student's x as it is
    without such norms.
    """
    sums: dict[nn.RMSNorm, Tensor] = {}

    def add(norm: nn.RMSNorm, x: Tensor) -> None:
        """Add a batch's moments to those before."""
        x = x.flatten(0, 1).double()
        normed = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + cast(float, norm.eps))
        moments = torch.stack([(x * normed).sum(dim=0), normed.square().sum(dim=0)])
        sums[norm] = sums[norm] + moments if norm in sums else moments

    with dense_encoders(student), without_output_norms(student, add):
        for part in input_ids[: max(1, ENCODER_TOKENS // input_ids.shape[1])].split(ENCODER_ROWS):
            student.model(input_ids=part)
    for norm, (products, squares) in sums.items():
        norm.weight.copy_(products / squares.clamp_min(EPSILON))


@contextmanager
def without_output_norms(
    student: GooseForCausalLM, see: Callable[[nn.RMSNorm, Tensor], None] = lambda norm, x: None
) -> Iterator[None]:
    """Within the block, norms before last projections pass on what they are given, and `see` is told of it."""

    def pass_on(norm: Any, given: tuple[Tensor], result: Tensor) -> Tensor:
        """What came in."""
        see(norm, given[0])
        return given[0]

    with ExitStack() as hooks:
        for norm in output_norms(student):
            hooks.callback(norm.register_forward_hook(pass_on).remove)
        yield


def calibrated_encoders(student: GooseForCausalLM) -> list[SpikeEncoder]:
    """The encoders whose threshold factor is searched for."""
    return [module for module in student.modules() if isinstance(module, SpikeEncoder) and module.stores_alpha]


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


def _recorded_mixers(
    student: GooseForCausalLM, records: Sequence[BlockRecord]
) -> Iterator[tuple[GooseMixer, Tensor, SublayerRecord]]:
    """Mixers with what their own norms make of the stream, and what attention did there."""
    for module, record in zip(student.model.layers, records, strict=True):
        if record.attention is not None:
            block = cast(GooseBlock, module)
            mixer = cast(GooseMixer, block.mixer)
            yield mixer, block.mixer_norm(record.attention.stream.to(mixer.head_norm.dtype)), record.attention


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
    gated = read * mixer.head_norm
    gated = gated if mixer.output_norm is None else mixer.output_norm(gated)
    projected = layer_input(mixer.encoders, "mixer_out", gated, {}).dense()
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
