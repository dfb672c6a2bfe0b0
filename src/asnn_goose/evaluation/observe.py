"""Looks inside a student and its teacher while they read the same rows: spikes, what they were made of, and streams.

Nothing is changed by being looked at: hooks are set for one pass, and every module is left in the mode it was in.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from asnn_goose.errors import TeacherError
from asnn_goose.evaluation.observation import Observation, SiteObservation
from asnn_goose.evaluation.student import site_encoders
from asnn_goose.models.anatomy import LLAMA_FAMILY, body_blocks
from asnn_goose.models.goose_mixer import GooseMixer
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.sublayers import residual_stream
from asnn_goose.models.teacher import Teacher
from asnn_goose.spikes.encoder import SpikeEncoder, Spikes, token_step
from asnn_goose.spikes.threshold import mixed_sizes

Place = tuple[int, str]
"""Where spikes are made: block and site, such as (0, "k"); the head's input is behind the last block."""


def observations(
    student: GooseForCausalLM, teacher: Teacher, rows: Int[Tensor, "rows time"], rows_per_batch: int
) -> Iterator[Observation]:
    """What `observe` sees of the rows, so many at a time, in their order; the last batch may have fewer.

    Raises:
        TeacherError: The teacher is of an architecture whose blocks are not known.
    """
    for ids in rows.split(rows_per_batch):
        yield observe(student, teacher, ids)


def observe(student: GooseForCausalLM, teacher: Teacher, ids: Int[Tensor, "batch time"]) -> Observation:
    """The insides of both models while they read whole rows, in evaluation mode and without gradients.

    `preactivations` are x over the token's quantization step (over the channel's, where thresholds differ between
    channels); where an encoder has a membrane they are the potential it fires at, beta * c_{t-1} + x_t / step, for
    spikes are made of that and not of the activation alone. The staircase makes exactly `spikes` of them: where a
    compiled encoder rounded the other way at a border, they are moved to its side of the border, by a last bit.
    `states` are, for goose, what the heads read of the state, S_t r_t, each head normalized, before gain, gate and
    output; for wkv S_t itself, which is all that its output projection is given. Both hold the token that was just
    written. The last entry of both streams stands before the final norm.

    Raises:
        TeacherError: The teacher is of an architecture whose blocks are not known.
    """
    family = teacher.model.config.model_type
    if family not in ("gpt2", *LLAMA_FAMILY):
        raise TeacherError(
            f"{teacher.name} is a {family} model: hidden states are seen in gpt2, {', '.join(LLAMA_FAMILY)}; look at a "
            "student whose teacher is one of these"
        )
    sites: dict[Place, SiteObservation] = {}
    states: dict[int, Tensor] = {}
    taught = teacher.model.base_model
    with at_rest(student, teacher.model):
        with _watched(student, sites, states):
            places = range(1, len(student.model.layers) + 1)
            _, block_outputs = residual_stream(student.model, places, ids.to(student.device))
        blocks, _ = body_blocks(taught)
        _, teacher_hidden = residual_stream(taught, range(len(blocks) + 1), ids.to(taught.device))
    return Observation(sites, states, block_outputs, teacher_hidden)


def has_spikes(student: GooseForCausalLM) -> bool:
    """Whether anything in the student is encoded."""
    return bool(site_encoders(student))


def encoders_by_place(student: GooseForCausalLM) -> dict[Place, SpikeEncoder]:
    """Every encoder of the student, block by block."""
    named = ((name.removeprefix("layer_").split("."), encoder) for name, encoder in site_encoders(student).items())
    return {(int(block), site): encoder for (block, site), encoder in named}


@contextmanager
def at_rest(*models: nn.Module) -> Iterator[None]:
    """Within the block models are in evaluation mode and take no gradients; then each module is as it was."""
    before = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in before.items():
            module.training = training


@contextmanager
def _watched(
    student: GooseForCausalLM, sites: dict[Place, SiteObservation], states: dict[int, Tensor]
) -> Iterator[None]:
    """Within the block one pass of the student fills in what its sites and its states did."""
    with ExitStack() as hooks:
        for place, encoder in encoders_by_place(student).items():
            hooks.callback(encoder.register_forward_hook(partial(_keep_spikes, sites, place)).remove)
        for block, mixer in enumerate(student.model.mixers()):
            if isinstance(mixer, GooseMixer):
                hooks.callback(mixer.register_forward_hook(partial(_keep_read, states, block)).remove)
            else:
                reader = dict(mixer.encoders.items()).get("mixer_out", mixer.output)
                hooks.callback(reader.register_forward_pre_hook(partial(_keep_given, states, block)).remove)
        yield


def _keep_spikes(
    sites: dict[Place, SiteObservation], place: Place, encoder: Any, given: tuple[Any, ...], encoded: Spikes
) -> None:
    # `_keep_read` lets k and v be encoded once more.
    if place not in sites:
        sites[place] = SiteObservation(encoded.values, _preactivations(encoder, given[0], encoded))


def _keep_read(states: dict[int, Tensor], block: int, mixer: Any, given: tuple[Any, ...], mixed: Any) -> None:
    states[block] = mixer.read(given[0])


def _keep_given(states: dict[int, Tensor], block: int, reader: nn.Module, given: tuple[Any, ...]) -> None:
    states[block] = given[0]


def _preactivations(
    encoder: SpikeEncoder, x: Float[Tensor, "batch time width"], encoded: Spikes
) -> Float[Tensor, "batch time width"]:
    """What the staircase made the spikes of, in rows that start where the sequence does."""
    x = x if x.dtype == torch.float64 else x.float()
    if encoded.token_scale is not None:
        step = encoded.token_scale
    elif encoder.threshold.channel_share > 0:
        step = token_step(encoder.alpha, mixed_sizes(x, encoder.threshold.channel_share, None, None)[0])
    else:
        step = encoder.step(x, encoder.alpha)
    z = x / step
    if encoder.membrane is not None:
        rest = z.new_zeros(z.shape[0], z.shape[2])
        fired = torch.ops.asnn_goose.membrane(z, rest, None, encoder.membrane.beta, encoder.levels, encoder.signed)
        z = fired[1]
    return _on_their_side(z, encoded.values, encoder)


def _on_their_side(z: Tensor, spikes: Tensor, encoder: SpikeEncoder) -> Tensor:
    """The same numbers, but for a rounding error on the side of each border where the spikes are."""
    height = spikes.abs()
    # The sum of 1/2 and the largest number below a border may round to the border.
    below = height + 0.5 - torch.finfo(z.dtype).eps * (height + 1)
    bounded = height < encoder.levels
    if not encoder.signed:
        bounded &= z >= 0
    return torch.copysign(z.abs().clamp(height - 0.5, torch.where(bounded, below, torch.inf)), z)
