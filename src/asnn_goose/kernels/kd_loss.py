"""The distillation loss computed in chunks of tokens, its gradient formed in the forward pass.

With student logits z, teacher logits u and temperature T, summed over tokens:

    loss = kl_weight * T**2 * KL(softmax(u / T) || softmax(z / T)) + cross_entropy_weight * CE(softmax(z))
    dloss/dz = kl_weight * T * (softmax(z / T) - softmax(u / T)) + cross_entropy_weight * (softmax(z) - onehot)

(Hinton et al. 2015, section 2, forward KL.) dloss/dz goes at once into the gradients of the hidden states
and of the head's weight, so that only a few buffers of chunk x vocabulary ever exist.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from asnn_goose.errors import VocabularyMismatchError
from asnn_goose.kernels.kd_chunk import ChunkPlan, allocate_buffers, chunk_sums, token_losses

NOT_SCORED = -100


class LinearHead(NamedTuple):
    """The output projection of a language model: logits = hidden @ weight.T + bias."""

    weight: Float[Tensor, "vocabulary width"]
    bias: Float[Tensor, " vocabulary"] | None = None


@dataclass(frozen=True)
class DistillationSums:
    """Sums over tokens, 0-d, float32 (float64 for float64 inputs).

    loss: differentiable, in weighted nats. kl_nats: KL(teacher || student) at the temperature over valid
    tokens, without T**2, detached. cross_entropy_nats: over labeled tokens at temperature 1, detached.
    """

    loss: Float[Tensor, ""]
    kl_nats: Float[Tensor, ""]
    cross_entropy_nats: Float[Tensor, ""]


class _Gradients(NamedTuple):
    """Sums over tokens in the statistics' dtype; None where nobody asked."""

    hidden: Float[Tensor, "tokens width"] | None
    weight: Float[Tensor, "vocabulary width"] | None
    bias: Float[Tensor, " vocabulary"] | None


def distillation_sums(
    student_hidden: Float[Tensor, "tokens student_width"],
    student_head: LinearHead,
    teacher_hidden: Float[Tensor, "tokens teacher_width"] | None,
    teacher_head: LinearHead | None,
    labels: Int[Tensor, " tokens"],
    valid: Bool[Tensor, " tokens"],
    temperature: float,
    kl_weight: float,
    cross_entropy_weight: float,
    chunk_tokens: int,
    matmul_dtype: torch.dtype | None = None,
) -> DistillationSums:
    """KL of the student from the teacher over `valid` tokens plus cross entropy where labels are not -100.

    Gradients reach `student_hidden` and the student's head, never the teacher; they are exact for any
    `chunk_tokens` and are summed in float32 (float64 for float64 inputs). `matmul_dtype` is the dtype of the
    matrix products alone; None takes the inputs' own. With `kl_weight` 0 the teacher may be None. With
    `cross_entropy_weight` 0 the cross entropy is still reported. What a token that is neither valid nor
    labeled holds is not read.

    Raises:
        ValueError: a temperature or chunk that is not positive, a negative weight, shapes that do not
            belong together, or a missing teacher.
        VocabularyMismatchError: heads over different vocabularies.
    """
    teacher = _check_teacher(teacher_hidden, teacher_head, kl_weight)
    _check_numbers(temperature, kl_weight, cross_entropy_weight, chunk_tokens)
    _check_shapes(student_hidden, student_head, teacher, labels, valid)
    scored = labels != NOT_SCORED
    plan = ChunkPlan(
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        matmul_dtype=matmul_dtype,
        labels=labels.long().clamp_min(0)[:, None],
        scored=scored[:, None],
        valid=valid[:, None],
        kl_weight=kl_weight,
        cross_entropy_weight=cross_entropy_weight,
        # Looking for a label would make an accelerator wait, for more than the pass it can save.
        reports_cross_entropy=labels.device.type != "cpu" or bool(scored.any()),
    )
    sums: tuple[Tensor, Tensor, Tensor] = _Distillation.apply(
        student_hidden, student_head.weight, student_head.bias, teacher, plan, torch.is_grad_enabled()
    )
    return DistillationSums(*sums)


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
    _check_shapes(hidden, head, None, labels, labels)
    scored = (labels != NOT_SCORED)[:, None]
    targets = labels.long().clamp_min(0)[:, None]
    losses = torch.zeros_like(labels, dtype=_statistics_dtype(hidden, head))
    with torch.autocast(hidden.device.type, enabled=False):
        operands = _operands(hidden, head, scored, matmul_dtype)
        logits = losses.new_empty(min(chunk_tokens, len(losses)), len(head.weight))
        log_softmax = torch.empty_like(logits)
        for rows in _chunks(len(losses), chunk_tokens):
            size = rows.stop - rows.start
            _fill_logits(logits[:size], operands, rows)
            torch.log_softmax(logits[:size], dim=-1, out=log_softmax[:size])
            losses[rows] = token_losses(log_softmax[:size], targets[rows], scored[rows])[:, 0]
    return losses


class _Distillation(torch.autograd.Function):
    """The loss whose forward leaves nothing for the backward but a multiplication."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "tokens student_width"],
        weight: Float[Tensor, "vocabulary student_width"],
        bias: Float[Tensor, " vocabulary"] | None,
        teacher: tuple[Tensor, LinearHead] | None,
        plan: ChunkPlan,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum the three figures over the chunks and, where asked for, the gradients."""
        kind = _statistics_dtype(hidden, LinearHead(weight, bias))
        gradients = _Gradients(
            *(
                torch.zeros_like(tensor, dtype=kind, memory_format=torch.contiguous_format)
                if grad_enabled and tensor is not None and tensor.requires_grad
                else None
                for tensor in (hidden, weight, bias)
            )
        )
        with torch.autocast(hidden.device.type, enabled=False):
            kl_nats, cross_entropy_nats = _sum_chunks(hidden, LinearHead(weight, bias), teacher, plan, gradients)
        loss = plan.kl_weight * plan.temperature**2 * kl_nats + plan.cross_entropy_weight * cross_entropy_nats
        ctx.save_for_backward(*gradients)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(kl_nats, cross_entropy_nats)
        return loss, kl_nats, cross_entropy_nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Float[Tensor, ""], *unused: Tensor) -> tuple[Tensor | None, ...]:
        """The stored gradients times the gradient of the loss, in their parameters' dtypes."""
        gradients = (
            None if stored is None else (stored * loss_gradient).to(dtype)
            for stored, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*gradients, None, None, None)


def _sum_chunks(
    hidden: Tensor, head: LinearHead, teacher: tuple[Tensor, LinearHead] | None, plan: ChunkPlan, gradients: _Gradients
) -> tuple[Tensor, Tensor]:
    """KL and cross entropy in nats, summed over all chunks; adds each chunk's share to `gradients`."""
    read = plan.valid | plan.scored
    student = _operands(hidden, head, read, plan.matmul_dtype)
    wanted = any(gradient is not None for gradient in gradients)
    dtype = _statistics_dtype(hidden, head)
    buffers = allocate_buffers(student[0], len(head.weight), dtype, teacher is not None, wanted, plan)
    kl_nats, cross_entropy_nats = hidden.new_zeros((), dtype=dtype), hidden.new_zeros((), dtype=dtype)
    teacher = None if teacher is None else _operands(*teacher, read, plan.matmul_dtype)
    for rows in _chunks(len(hidden), plan.chunk_tokens):
        chunk = buffers.first(rows.stop - rows.start)
        _fill_logits(chunk.student, student, rows)
        if teacher is not None and chunk.teacher is not None:
            _fill_logits(chunk.teacher, teacher, rows)
        kl, cross_entropy, logits_gradient = chunk_sums(chunk, rows, plan, wanted)
        kl_nats += kl
        cross_entropy_nats += cross_entropy
        if logits_gradient is not None:
            _add_gradients(gradients, rows, logits_gradient, student, chunk.rounded)
    return kl_nats, cross_entropy_nats


def _chunks(tokens: int, chunk_tokens: int) -> list[slice]:
    """The token ranges to work through, the last one as long as what is left."""
    return [slice(start, min(start + chunk_tokens, tokens)) for start in range(0, tokens, chunk_tokens)]


def _statistics_dtype(hidden: Tensor, head: LinearHead) -> torch.dtype:
    """The dtype of logits, softmax and sums."""
    return torch.float64 if torch.float64 in (hidden.dtype, head.weight.dtype) else torch.float32


def _operands(
    hidden: Tensor, head: LinearHead, read: Tensor, matmul_dtype: torch.dtype | None
) -> tuple[Tensor, LinearHead]:
    """What the matrix products multiply, with zeros where a token is not read: it may hold anything."""
    dtype = matmul_dtype or torch.promote_types(hidden.dtype, head.weight.dtype)
    bias = None if head.bias is None else head.bias.detach()
    return hidden.detach().masked_fill(~read, 0).to(dtype), LinearHead(head.weight.detach().to(dtype), bias)


def _fill_logits(out: Tensor, operands: tuple[Tensor, LinearHead], rows: slice) -> None:
    """Write the logits of one chunk into `out`."""
    hidden, head = operands
    _matmul(out, hidden[rows], head.weight.t(), add=False)
    if head.bias is not None:
        out.add_(head.bias)


def _matmul(out: Tensor, left: Tensor, right: Tensor, add: bool) -> None:
    """Write left @ right into `out`, or add it, unrounded in between where the device can."""
    if out.dtype == left.dtype:
        torch.addmm(out, left, right, beta=int(add), out=out)
    elif left.is_cuda and out.dtype == torch.float32:
        torch.addmm(out, left, right, out_dtype=torch.float32, beta=int(add), out=out)
    else:
        product = left @ right
        out.add_(product) if add else out.copy_(product)


def _add_gradients(
    gradients: _Gradients, rows: slice, logits: Tensor, student: tuple[Tensor, LinearHead], rounded: Tensor | None
) -> None:
    """Carry one chunk's gradient at the logits to the hidden states and the head."""
    hidden, head = student
    operand = logits if rounded is None else rounded.copy_(logits)
    if gradients.hidden is not None:
        _matmul(gradients.hidden[rows], operand, head.weight, add=False)
    if gradients.weight is not None:
        _matmul(gradients.weight, operand.t(), hidden[rows], add=True)
    if gradients.bias is not None:
        gradients.bias.add_(logits.sum(dim=0))


def _check_teacher(
    hidden: Tensor | None, head: LinearHead | None, kl_weight: float
) -> tuple[Tensor, LinearHead] | None:
    """The teacher as one value, None if the loss does not ask for it."""
    if kl_weight == 0:
        return None
    if hidden is None or head is None:
        raise ValueError(f"kl_weight {kl_weight} needs a teacher, got None; pass its hidden states and head, or 0")
    return hidden, head


def _check_numbers(temperature: float, kl_weight: float, cross_entropy_weight: float, chunk_tokens: int) -> None:
    """Refuse numbers for which the loss has no meaning."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if min(kl_weight, cross_entropy_weight) < 0:
        raise ValueError(f"loss weights must be 0 or more, got KL {kl_weight}, cross entropy {cross_entropy_weight}")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}; 256 to 4096 is usual")


def _check_shapes(
    hidden: Tensor, head: LinearHead, teacher: tuple[Tensor, LinearHead] | None, labels: Tensor, valid: Tensor
) -> None:
    """Refuse tensors that do not describe the same tokens and one vocabulary."""
    sizes = {"labels": len(labels), "valid": len(valid)}
    if teacher is not None:
        sizes["teacher_hidden"] = len(teacher[0])
        if len(teacher[1].weight) != len(head.weight):
            raise VocabularyMismatchError(
                f"the teacher's head has {len(teacher[1].weight)} tokens, the student's {len(head.weight)}: "
                "a KL needs one vocabulary; give the student the teacher's tokenizer"
            )
    for name, size in sizes.items():
        if size != len(hidden):
            raise ValueError(f"{name} must have one entry for each of {len(hidden)} tokens, got {size}")
    for states, output in [(hidden, head)] if teacher is None else [(hidden, head), teacher]:
        if states.shape[-1] != output.weight.shape[1]:
            raise ValueError(f"hidden width {states.shape[-1]} does not fit a head of width {output.weight.shape[1]}")
