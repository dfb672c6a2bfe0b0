"""The distillation loss computed in chunks of tokens, its gradient formed in the forward pass.

With student logits z, teacher logits u, temperature T and a divergence D, summed over tokens:

    loss = divergence_weight * T**2 * D(softmax(u / T), softmax(z / T)) + cross_entropy_weight * CE(softmax(z))

(Hinton et al. 2015, section 2; T in place of T**2 for the total variation.) For the forward KL

    dloss/dz = divergence_weight * T * (softmax(z / T) - softmax(u / T)) + cross_entropy_weight * (softmax(z) - onehot)

and for L = T**n * D(u / T, z / T) of any kind dL/dT = (n L - <dL/dz, z> - <dL/du, u>) / T.
"""

import logging
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from asnn_goose.errors import MachineError, VocabularyMismatchError
from asnn_goose.kernels.divergences import FORWARD_KL, Divergence
from asnn_goose.kernels.head_chunks import (
    ChunkSpace,
    HeadLoss,
    LinearHead,
    Rule,
    chunks,
    fill_logits,
    filled_up,
    head_loss,
    operands,
    statistics_dtype,
)
from asnn_goose.kernels.kd_chunk import ChunkPlan, TorchRule, token_losses

NOT_SCORED = -100

LossBackend = Literal["auto", "torch", "triton"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillationSums:
    """Sums over tokens, 0-d, float32 (float64 for float64 inputs).

    loss: differentiable, in weighted nats. divergence_nats: the divergence at the temperature over valid
    tokens, without the power of T, detached. cross_entropy_nats: over labeled tokens at temperature 1, detached.
    """

    loss: Float[Tensor, ""]
    divergence_nats: Float[Tensor, ""]
    cross_entropy_nats: Float[Tensor, ""]


def distillation_sums(
    student_hidden: Float[Tensor, "tokens student_width"],
    student_head: LinearHead,
    teacher_hidden: Float[Tensor, "tokens teacher_width"] | None,
    teacher_head: LinearHead | None,
    labels: Int[Tensor, " tokens"],
    valid: Bool[Tensor, " tokens"],
    temperature: float | Float[Tensor, ""],
    divergence_weight: float | Float[Tensor, ""],
    cross_entropy_weight: float | Float[Tensor, ""],
    chunk_tokens: int,
    matmul_dtype: torch.dtype | None = None,
    divergence: Divergence = FORWARD_KL,
    backend: LossBackend = "auto",
) -> DistillationSums:
    """Divergence of the student from the teacher over `valid` tokens plus cross entropy where labels are not -100.

    Gradients reach `student_hidden`, the student's head and a temperature that is a tensor, never the teacher; they
    are exact for any `chunk_tokens` and are summed in float32 (float64 for float64 inputs). `matmul_dtype` is the
    dtype of the matrix products alone; None takes the inputs' own. With `divergence_weight` 0 the teacher may be
    None. With `cross_entropy_weight` 0 the cross entropy is still reported. Weights that are tensors get no gradient,
    and may change between replays of a CUDA graph. What a token that is neither valid nor
    labeled holds is not read. `auto` takes Triton for float32 statistics on a GPU, else torch.

    Raises:
        ValueError: a temperature or chunk that is not positive, a negative weight, shapes that do not
            belong together, or a missing teacher.
        VocabularyMismatchError: heads over different vocabularies.
        MachineError: Triton asked for where it cannot be imported.
    """
    teacher = _check_teacher(teacher_hidden, teacher_head, divergence_weight)
    _check_numbers(temperature, divergence_weight, cross_entropy_weight, chunk_tokens)
    check_shapes(student_hidden, student_head, teacher, labels=len(labels), valid=len(valid))
    scored = labels != NOT_SCORED
    plan = ChunkPlan(
        temperature=temperature,
        divergence=divergence,
        labels=labels.long().clamp_min(0)[:, None],
        scored=scored[:, None],
        valid=valid[:, None],
        divergence_weight=divergence_weight,
        cross_entropy_weight=cross_entropy_weight,
        # Looking for a label would make an accelerator wait, for more than the pass it can save.
        reports_cross_entropy=labels.device.type != "cpu" or bool(scored.any()),
    )
    loss, figures = head_loss(
        student_hidden, student_head, teacher, temperature if isinstance(temperature, Tensor) else None,
        HeadLoss(plan.valid | plan.scored, chunk_tokens, matmul_dtype, partial(_rule, backend, plan), figures=2),
    )  # fmt: skip
    return DistillationSums(loss, *figures.unbind())


def _rule(backend: LossBackend, plan: ChunkPlan, space: ChunkSpace) -> Rule:
    """What computes a chunk: Triton has no form without a teacher, nor one in float64."""
    if backend == "torch" or not plan.weighs_teacher or space.statistics != torch.float32:
        return TorchRule(plan, space)
    if backend == "triton" or (space.device.type == "cuda" and _triton_imports()):
        from asnn_goose.kernels.kd_triton import TritonRule

        return TritonRule(plan, space)
    return TorchRule(plan, space)


@cache
def _triton_imports() -> bool:
    """Whether Triton's kernels can be had: asked, and said, once."""
    try:
        from asnn_goose.kernels import kd_triton  # noqa: F401
    except MachineError as error:
        logger.info("distillation loss: torch (%s)", error)
        return False
    return True


@torch.no_grad()
def cross_entropy_sums(
    hidden: Float[Tensor, "tokens width"],
    head: LinearHead,
    labels: Int[Tensor, " tokens"],
    chunk_tokens: int,
    matmul_dtype: torch.dtype | None = None,
) -> Float[Tensor, " tokens"]:
    """The cross entropy of each token at temperature 1, 0 where the label is -100; no gradient.

    float32 (float64 for float64 inputs); `matmul_dtype` as in `distillation_sums`.

    Raises:
        ValueError: `chunk_tokens` below 1 or shapes that do not belong together.
    """
    _check_numbers(1.0, 0.0, 1.0, chunk_tokens)
    check_shapes(hidden, head, None, labels=len(labels))
    scored = (labels != NOT_SCORED)[:, None]
    targets = labels.long().clamp_min(0)[:, None]
    losses = torch.zeros_like(labels, dtype=statistics_dtype(hidden, head))
    with torch.autocast(hidden.device.type, enabled=False):
        given = operands(hidden, head, scored, matmul_dtype)
        words = filled_up(len(head.weight), losses.device)
        logits, log_softmax = losses.new_empty(2, min(chunk_tokens, len(losses)), words)[..., : len(head.weight)]
        for rows in chunks(len(losses), chunk_tokens):
            size = rows.stop - rows.start
            fill_logits(logits[:size], given, rows)
            torch.log_softmax(logits[:size], dim=-1, out=log_softmax[:size])
            losses[rows] = token_losses(log_softmax[:size], targets[rows], scored[rows])[:, 0]
    return losses


def _check_teacher(
    hidden: Tensor | None, head: LinearHead | None, divergence_weight: float | Tensor
) -> tuple[Tensor, LinearHead] | None:
    """The teacher as one value, None if the loss does not ask for it."""
    if not isinstance(divergence_weight, Tensor) and divergence_weight == 0:
        return None
    if hidden is None or head is None:
        raise ValueError(
            f"divergence_weight {divergence_weight} needs a teacher, got None; pass its hidden states and head, or 0"
        )
    return hidden, head


def _check_numbers(
    temperature: float | Tensor,
    divergence_weight: float | Tensor,
    cross_entropy_weight: float | Tensor,
    chunk_tokens: int,
) -> None:
    """Refuse numbers for which the loss has no meaning; what is on a device is not waited for."""
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if any(not isinstance(weight, Tensor) and weight < 0 for weight in (divergence_weight, cross_entropy_weight)):
        given = f"divergence {divergence_weight}, cross entropy {cross_entropy_weight}"
        raise ValueError(f"loss weights must be 0 or more, got {given}")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}; 256 to 4096 is usual")


def check_shapes(hidden: Tensor, head: LinearHead, teacher: tuple[Tensor, LinearHead] | None, **entries: int) -> None:
    """Refuse tensors that do not describe the same tokens and one vocabulary.

    Raises:
        ValueError: another number of tokens in `entries`, by name, or a width that does not fit its head.
        VocabularyMismatchError: heads over different vocabularies.
    """
    if teacher is not None:
        entries["teacher_hidden"] = len(teacher[0])
        if len(teacher[1].weight) != len(head.weight):
            raise VocabularyMismatchError(
                f"the teacher's head has {len(teacher[1].weight)} tokens, the student's {len(head.weight)}: "
                "a distillation loss needs one vocabulary; give the student the teacher's tokenizer"
            )
    for name, size in entries.items():
        if size != len(hidden):
            raise ValueError(f"{name} must have one entry for each of {len(hidden)} tokens, got {size}")
    for states, output in [(hidden, head)] if teacher is None else [(hidden, head), teacher]:
        if states.shape[-1] != output.weight.shape[1]:
            raise ValueError(f"hidden width {states.shape[-1]} does not fit a head of width {output.weight.shape[1]}")
