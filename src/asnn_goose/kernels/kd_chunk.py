"""One chunk of the distillation loss: from both models' logits to sums and the gradient at the logits, in place.

Each logit buffer is read and overwritten as few times as torch allows; `kd_loss` states the equations.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ChunkPlan:
    """What stays the same from chunk to chunk.

    labels: the scored token's id, anything in the vocabulary where `scored` is False. valid: the tokens the
    KL counts. reports_cross_entropy: False if no token is scored, which saves a pass.
    """

    temperature: float
    chunk_tokens: int
    matmul_dtype: torch.dtype | None
    labels: Int[Tensor, "tokens 1"]
    scored: Bool[Tensor, "tokens 1"]
    valid: Bool[Tensor, "tokens 1"]
    kl_weight: float
    cross_entropy_weight: float
    reports_cross_entropy: bool


class ChunkBuffers(NamedTuple):
    """Chunk x vocabulary memory, written anew by every chunk.

    `softmax` is there if the cross entropy needs a softmax of its own, `rounded` if the gradient's matrix
    products run in another dtype than the statistics.
    """

    student: Float[Tensor, "chunk vocabulary"]
    spare: Float[Tensor, "chunk vocabulary"]
    teacher: Float[Tensor, "chunk vocabulary"] | None
    softmax: Float[Tensor, "chunk vocabulary"] | None
    rounded: Float[Tensor, "chunk vocabulary"] | None

    def first(self, rows: int) -> "ChunkBuffers":
        """The same memory for a chunk of `rows` tokens."""
        optional = (None if buffer is None else buffer[:rows] for buffer in self[2:])
        return ChunkBuffers(self.student[:rows], self.spare[:rows], *optional)


def allocate_buffers(
    hidden: Tensor, vocabulary: int, dtype: torch.dtype, has_teacher: bool, wanted: bool, plan: ChunkPlan
) -> ChunkBuffers:
    """Memory for one chunk, no more than the chosen loss needs; `dtype` is that of logits and sums.

    `hidden` is as the matrix products take it; `wanted` says whether a gradient is asked for.
    """
    shape = (min(plan.chunk_tokens, len(hidden)), vocabulary)
    rounds = wanted and hidden.dtype != dtype
    separate = has_teacher and wanted and plan.temperature != 1 and plan.cross_entropy_weight != 0
    return ChunkBuffers(
        student=hidden.new_empty(shape, dtype=dtype),
        spare=hidden.new_empty(shape, dtype=dtype),
        teacher=hidden.new_empty(shape, dtype=dtype) if has_teacher else None,
        softmax=hidden.new_empty(shape, dtype=dtype) if separate else None,
        rounded=hidden.new_empty(shape) if rounds else None,
    )


def chunk_sums(chunk: ChunkBuffers, rows: slice, plan: ChunkPlan, wanted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """KL and cross entropy in nats and the loss's gradient at the logits, summed over the chunk `rows`.

    `chunk` enters with the logits of the student and, for a KL, of the teacher, and is used up; the gradient
    lies in its memory and is None if it is unwanted or zero.
    """
    none = chunk.student.new_zeros(())
    if chunk.teacher is None:
        return none, *_cross_entropy_chunk(chunk.student, chunk.spare, rows, plan, wanted)
    if plan.temperature == 1:
        return _divergence_chunk(chunk, chunk.teacher, rows, plan, wanted)
    cross_entropy, addend = none, None
    if plan.reports_cross_entropy:
        out = chunk.spare if chunk.softmax is None else chunk.softmax
        cross_entropy, addend = _cross_entropy_chunk(chunk.student, out, rows, plan, wanted)
    chunk.student.div_(plan.temperature)
    chunk.teacher.div_(plan.temperature)
    kl, _, gradient = _divergence_chunk(chunk, chunk.teacher, rows, plan, wanted)
    if gradient is not None and addend is not None:
        gradient.add_(addend)
    return kl, cross_entropy, gradient


def _cross_entropy_chunk(
    logits: Tensor, out: Tensor, rows: slice, plan: ChunkPlan, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Cross entropy at the temperature of `logits`, and its weighted gradient, formed in `out`."""
    labels, scored = plan.labels[rows], plan.scored[rows]
    loss = token_losses(torch.log_softmax(logits, dim=-1, out=out), labels, scored).sum()
    if not wanted or plan.cross_entropy_weight == 0:
        return loss, None
    share = scored.to(out.dtype) * plan.cross_entropy_weight
    return loss, out.exp_().mul_(share).scatter_add_(1, labels, -share)


def _divergence_chunk(
    chunk: ChunkBuffers, teacher: Tensor, rows: slice, plan: ChunkPlan, wanted: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """KL between logits already divided by the temperature, and the weighted gradient before that division.

    At temperature 1 the cross entropy comes along, from the same softmax.
    """
    labels, scored, valid = plan.labels[rows], plan.scored[rows], plan.valid[rows]
    log_teacher = torch.log_softmax(teacher, dim=-1, out=chunk.spare)
    log_student = torch.log_softmax(chunk.student, dim=-1, out=teacher)
    difference = torch.sub(log_teacher, log_student, out=chunk.student)
    cross_entropy = log_student.new_zeros(())
    shares_softmax = plan.temperature == 1 and plan.reports_cross_entropy
    if shares_softmax:
        cross_entropy = token_losses(log_student, labels, scored).sum()
    probability = log_teacher.exp_()
    kl = difference.mul_(probability).sum(dim=-1, keepdim=True).masked_fill_(~valid, 0).sum()
    if not wanted:
        return kl, cross_entropy, None
    kl_share = valid.to(kl.dtype) * (plan.kl_weight * plan.temperature)
    gradient = log_student.exp_()
    if not shares_softmax or plan.cross_entropy_weight == 0:
        return kl, cross_entropy, gradient.sub_(probability).mul_(kl_share)
    label_share = scored.to(kl.dtype) * plan.cross_entropy_weight
    gradient.mul_(kl_share + label_share).addcmul_(probability, kl_share, value=-1)
    return kl, cross_entropy, gradient.scatter_add_(1, labels, -label_share)


def token_losses(log_softmax: Tensor, labels: Tensor, scored: Tensor) -> Tensor:
    """Minus the label's log probability, a column, 0 where there is no label."""
    return log_softmax.gather(1, labels).neg_().masked_fill_(~scored, 0)
