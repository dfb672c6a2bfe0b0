"""Moves amplitudes into the weights behind them, so that matrix products read nothing but integers.

With a factor a_c for each channel c of a site: W (a * s) = (W diag(a)) s.
"""

import copy
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from asnn_goose.models.plan import spike_fed_matmuls
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.spikes.encoder import SpikeEncoder


@torch.no_grad()
def fold_amplitudes(student: GooseForCausalLM) -> None:
    """Multiply the columns of every matrix that reads a site by the site's amplitudes, and set these to 1, in place.

    The student computes what it did before, but for rounding. A head that is tied to the token embedding and has
    columns to multiply becomes a matrix of its own, in the configuration too. Amplitudes of k and v stay: a
    recurrence reads them. Scalar ones stay too: they are multiplied after the product in any case.
    """
    for encoder, readers in encoded_inputs(student):
        amplitude = encoder.channel_amplitude()
        if encoder.amplitude is None or amplitude is None:
            continue
        multiply_columns(student, readers, amplitude)
        nn.init.ones_(encoder.amplitude)


def folded(student: GooseForCausalLM) -> GooseForCausalLM:
    """The student with its amplitudes in the weights: a copy, or itself where there is nothing to move."""
    if all(encoder.channel_amplitude() is None for encoder, _ in encoded_inputs(student)):
        return student
    moved = copy.deepcopy(student)
    fold_amplitudes(moved)
    return moved


@torch.no_grad()
def multiply_columns(student: GooseForCausalLM, readers: Iterable[nn.Linear], factors: Float[Tensor, " width"]) -> None:
    """Multiply the columns of a student's matrices by factors, in place; a tied head gets a matrix of its own first."""
    for layer in readers:
        if layer is student.lm_head:
            untie_head(student)
        layer.weight.mul_(factors.to(layer.weight.dtype))


def encoded_inputs(student: GooseForCausalLM) -> Iterator[tuple[SpikeEncoder, list[nn.Linear]]]:
    """Every encoder that linear layers read, block by block, with these layers; the head's at the end."""
    matmuls = spike_fed_matmuls(student.config)
    for block in student.model.layers:
        readers: dict[SpikeEncoder, list[nn.Linear]] = {}
        for operation in matmuls:
            part, (site,) = operation.module.split(".")[0], operation.inputs
            encoder = cast(SpikeEncoder, block.get_submodule(f"{part}.encoders.{site}"))
            readers.setdefault(encoder, []).append(cast(nn.Linear, block.get_submodule(operation.module)))
        yield from readers.items()
    for head_encoder in student.model.encoders.values():
        yield cast(SpikeEncoder, head_encoder), [student.lm_head]


def untie_head(student: GooseForCausalLM) -> None:
    """Give the head a matrix of its own, equal to the token embedding; nothing changes where it has one."""
    if student.lm_head.weight is not student.model.embed_tokens.weight:
        return
    student.lm_head.weight = nn.Parameter(student.lm_head.weight.detach().clone())
    student.config.tie_word_embeddings = False
    student.all_tied_weights_keys = student.get_expanded_tied_weights_keys(all_submodels=True)
