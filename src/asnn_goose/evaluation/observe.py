"""Looks inside a student and its teacher while they read the same rows: spikes, what they were made of, and streams.

Nothing is changed by being looked at: hooks are set for one pass, and every module is left in the mode it was in.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from asnn_goose.errors import MachineError, TeacherError
from asnn_goose.evaluation.observation import Observation, Place, SiteObservation
from asnn_goose.evaluation.student import site_encoders
from asnn_goose.information.controls import row_parts
from asnn_goose.information.side_by_side import one_by_one, side_by_side
from asnn_goose.models.anatomy import LLAMA_FAMILY, body_blocks
from asnn_goose.models.cpu_linear import onednn_linears
from asnn_goose.models.goose_mixer import GooseMixer
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.sublayers import residual_stream
from asnn_goose.models.teacher import Teacher
from asnn_goose.spikes.encoder import SpikeEncoder, Spikes, token_step
from asnn_goose.spikes.threshold import mixed_sizes

Found = TypeVar("Found")
CPU_ROWS, CPU_BYTES = 8, 2**31
"""Rows of a pass on a CPU, whose memory is small, and the room that what is seen of their sites may take."""
GPU_ROWS, GPU_SHARE = 32, 0.3
"""The same elsewhere, as a share of what is free: of fewer rows every kernel is shorter than its launch."""


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
    return observe_beside(student, observe_teacher(teacher, ids), ids)


def observe_teacher(
    teacher: Teacher, ids: Int[Tensor, "batch time"]
) -> tuple[Float[Tensor, "batch time teacher_width"], ...]:
    """The teacher's part of an observation, which several students may stand beside.

    Raises:
        TeacherError: The teacher is of an architecture whose blocks are not known.
    """
    family = teacher.model.config.model_type
    if family not in ("gpt2", *LLAMA_FAMILY):
        raise TeacherError(
            f"{teacher.name} is a {family} model: hidden states are seen in gpt2, {', '.join(LLAMA_FAMILY)}; look at a "
            "student whose teacher is one of these"
        )
    taught = teacher.model.base_model
    with at_rest(teacher.model), onednn_linears(teacher.model):
        blocks, _ = body_blocks(taught)
        _, hidden = residual_stream(taught, range(len(blocks) + 1), ids.to(taught.device))
    return hidden


def observe_beside(
    student: GooseForCausalLM,
    teacher_hidden: tuple[Float[Tensor, "batch time teacher_width"], ...],
    ids: Int[Tensor, "batch time"],
) -> Observation:
    """What `observe` sees, where the teacher has read the rows already."""
    sites: dict[Place, SiteObservation] = {}
    states: dict[int, Tensor] = {}
    with at_rest(student), onednn_linears(student), _watched(student, sites, states):
        places = range(1, len(student.model.layers) + 1)
        _, block_outputs = residual_stream(student.model, places, ids.to(student.device))
    return Observation(sites, states, block_outputs, teacher_hidden)


def passes(tasks: Sequence[Callable[[], Found]], device: torch.device) -> list[Found]:
    """What passes of different models return, in their order: side by side where compiled kernels allow it.

    Numba's own pool of threads lets one thread at a time call it; whether it has taken that one is known once a kernel
    has run.
    """
    try:
        from asnn_goose.kernels.numba_runtime import numba

        at_once = numba.threading_layer() != "workqueue"
    except MachineError:
        at_once = True
    except ValueError:
        at_once = False
    return side_by_side(tasks, device) if at_once else one_by_one(tasks)


def default_batch_rows(student: GooseForCausalLM, window: int, students: int = 1) -> int:
    """Rows of `window` tokens, at least one, of a pass that looks at so many students, by their device's room."""
    most, room = CPU_ROWS, CPU_BYTES
    if student.device.type == "cuda":
        most, room = GPU_ROWS, int(GPU_SHARE * torch.cuda.mem_get_info(student.device)[0])
    channels = sum(encoder.width for encoder in site_encoders(student).values())
    # Spikes and pre-activations, in float32.
    return max(1, min(most, room // max(1, students * 2 * 4 * window * channels)))


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
                hooks.enter_context(_read_kept(states, block, mixer))
            else:
                reader = dict(mixer.encoders.items()).get("mixer_out", mixer.output)
                hooks.callback(reader.register_forward_pre_hook(partial(_keep_given, states, block)).remove)
        yield


@contextmanager
def _read_kept(states: dict[int, Tensor], block: int, mixer: Any) -> Iterator[None]:
    """Within the block what the mixer's own pass recalls is kept: `GooseMixer.read` would compute all of it anew."""
    recall = mixer.recall

    def recall_and_keep(*given: Any) -> tuple[Tensor, Tensor]:
        """What was recalled, in the type that `read` gives it."""
        read, state = recall(*given)
        states[block] = read.to(mixer.head_norm.dtype)
        return read, state

    # On the instance, in front of the class's method.
    mixer.recall = recall_and_keep
    try:
        yield
    finally:
        del mixer.recall


def _keep_spikes(
    sites: dict[Place, SiteObservation], place: Place, encoder: Any, given: tuple[Any, ...], encoded: Spikes
) -> None:
    sites[place] = SiteObservation(encoded.values, _preactivations(encoder, given[0], encoded))


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
    # Where thresholds learn no compiled kernel rounds: this is the very quotient that the spikes were made of.
    return z if encoder.learns_alpha else _on_their_side(z, encoded.values, encoder)


def _on_their_side(z: Tensor, spikes: Tensor, encoder: SpikeEncoder) -> Tensor:
    """The same numbers, but for a rounding error on the side of each border where the spikes are."""
    epsilon, moved = torch.finfo(z.dtype).eps, torch.empty_like(z)
    for part in row_parts(len(z), z.device):
        row, height = z[part], spikes[part].abs()
        # The sum of 1/2 and the largest number below a border may round to the border.
        below = (height + 0.5).sub_((height + 1).mul_(epsilon))
        unbounded = height >= encoder.levels
        if not encoder.signed:
            unbounded |= ~(row >= 0)
        below.masked_fill_(unbounded, torch.inf)
        torch.abs(row, out=moved[part]).clamp_(height.sub_(0.5), below).copysign_(row)
    return moved
