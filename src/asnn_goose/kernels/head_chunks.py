"""Losses at the output of a language model's head, in chunks of tokens, their gradient formed in the forward pass.

A rule turns one chunk's logits into its loss and the loss's gradient there; that gradient goes at once into the
gradients of the hidden states and of the head, so that only a few arrays of chunk x vocabulary ever exist.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

GPU_MULTIPLE = 16
"""On a GPU a vocabulary is filled up to a multiple of this, with words that are never read.

Rows of logits then begin where 16 bytes are read at a time, and no side of a matrix product is odd: with GPT-2's 50,257
words one product of 2,048 tokens took 1.7 ms on an H200, by a kernel for unaligned operands.
"""


class LinearHead(NamedTuple):
    """The output projection of a language model: logits = hidden @ weight.T + bias."""

    weight: Float[Tensor, "vocabulary width"]
    bias: Float[Tensor, " vocabulary"] | None = None


class ChunkResult(NamedTuple):
    """What one chunk gives.

    `loss` and `figures` are sums over its tokens; `gradient` the loss's at the student's logits, None if it is
    unwanted or zero; `slope` the loss's derivative by the temperature, None if it is unwanted.
    """

    loss: Float[Tensor, ""]
    figures: Float[Tensor, " figures"]
    gradient: Float[Tensor, "chunk vocabulary"] | None
    slope: Float[Tensor, ""] | None = None


class ChunkSpace(NamedTuple):
    """What a rule knows before the first chunk: sizes, number types, and what is asked of it.

    `statistics` is the dtype of logits and sums, `operand` that of the matrix products.
    """

    tokens: int
    vocabulary: int
    device: torch.device
    statistics: torch.dtype
    operand: torch.dtype
    gradient_wanted: bool
    slope_wanted: bool

    def empty(self, dtype: torch.dtype | None = None) -> Float[Tensor, "chunk vocabulary"]:
        """Room for one chunk: the first columns of a filled-up vocabulary, whose others are 0."""
        columns = filled_up(self.vocabulary, self.device)
        room = torch.empty(self.tokens, columns, dtype=dtype or self.statistics, device=self.device)
        room[:, self.vocabulary :].zero_()
        return room[:, : self.vocabulary]


Rule = Callable[[slice, Tensor, Tensor | None], ChunkResult]
"""From the rows of a chunk and both models' logits there, which it may use up, to what the chunk gives."""


@dataclass(frozen=True)
class HeadLoss:
    """How a loss is computed.

    Attributes:
        read: The tokens it reads; what the others hold does not matter.
        chunk_tokens: Tokens whose logits exist at one time.
        matmul_dtype: The dtype of the matrix products; None takes the inputs' own.
        rule: Makes the rule for the given space.
        figures: How many figures the rule reports.
    """

    read: Bool[Tensor, "tokens 1"]
    chunk_tokens: int
    matmul_dtype: torch.dtype | None
    rule: Callable[[ChunkSpace], Rule]
    figures: int


def head_loss(
    hidden: Float[Tensor, "tokens width"],
    head: LinearHead,
    teacher: tuple[Tensor, LinearHead] | None,
    temperature: Float[Tensor, ""] | None,
    loss: HeadLoss,
) -> tuple[Float[Tensor, ""], Float[Tensor, " figures"]]:
    """The loss, differentiable by hidden states, head and temperature; and its figures, detached.

    Sums are float32 (float64 for float64 inputs); gradients are exact for any size of chunk.
    """
    value, figures = _HeadLoss.apply(
        hidden, head.weight, head.bias, temperature, teacher, loss, torch.is_grad_enabled()
    )
    return value, figures


class _Gradients(NamedTuple):
    """Sums over tokens in the statistics' dtype; None where nobody asked."""

    hidden: Float[Tensor, "tokens width"] | None
    weight: Float[Tensor, "vocabulary width"] | None
    bias: Float[Tensor, " vocabulary"] | None
    temperature: Float[Tensor, ""] | None


class _HeadLoss(torch.autograd.Function):
    """The loss whose forward leaves nothing for the backward but a multiplication."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "tokens width"],
        weight: Float[Tensor, "vocabulary width"],
        bias: Float[Tensor, " vocabulary"] | None,
        temperature: Float[Tensor, ""] | None,
        teacher: tuple[Tensor, LinearHead] | None,
        loss: HeadLoss,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        """Sum loss and figures over the chunks and, where asked for, the gradients."""
        head = LinearHead(weight, bias)
        kind = statistics_dtype(hidden, head)
        gradients = _Gradients(
            *(
                hidden.new_zeros(shape, dtype=kind)
                if grad_enabled and tensor is not None and tensor.requires_grad
                else None
                for tensor, shape in (
                    (hidden, hidden.shape),
                    (weight, (filled_up(len(weight), weight.device), weight.shape[1])),
                    (bias, (len(weight),)),
                    (temperature, ()),
                )
            )
        )
        with torch.autocast(hidden.device.type, enabled=False):
            value, figures = _sum_chunks(hidden, head, teacher, loss, gradients)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias, temperature)]
        ctx.vocabulary = len(weight)
        ctx.mark_non_differentiable(figures)
        return value, figures

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Float[Tensor, ""], *unused: Tensor) -> tuple[Tensor | None, ...]:
        """The stored gradients times the gradient of the loss, in their parameters' dtypes."""
        hidden, weight, bias, temperature = (
            None if stored is None else (stored * loss_gradient).to(dtype)
            for stored, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        if weight is not None:
            weight = weight[: ctx.vocabulary]
        return hidden, weight, bias, temperature, None, None, None


def _sum_chunks(
    hidden: Tensor, head: LinearHead, teacher: tuple[Tensor, LinearHead] | None, loss: HeadLoss, gradients: _Gradients
) -> tuple[Tensor, Tensor]:
    """Loss and figures summed over all chunks; adds each chunk's share to `gradients`."""
    student = operands(hidden, head, loss.read, loss.matmul_dtype)
    given = None if teacher is None else operands(*teacher, loss.read, loss.matmul_dtype)
    size = min(loss.chunk_tokens, len(hidden))
    at_logits = any(gradient is not None for gradient in gradients[:3])
    space = ChunkSpace(
        size, len(head.weight), hidden.device, statistics_dtype(hidden, head), student[0].dtype,
        at_logits, gradients.temperature is not None,
    )  # fmt: skip
    rule, logits = loss.rule(space), space.empty()
    teacher_logits = None if given is None else space.empty()
    total, figures = logits.new_zeros(()), logits.new_zeros(loss.figures)
    for rows in chunks(len(hidden), loss.chunk_tokens):
        found, wanted = logits[: rows.stop - rows.start], None
        fill_logits(found, student, rows)
        if given is not None and teacher_logits is not None:
            wanted = teacher_logits[: rows.stop - rows.start]
            fill_logits(wanted, given, rows)
        result = rule(rows, found, wanted)
        total += result.loss
        figures += result.figures
        if result.gradient is not None:
            _add_gradients(gradients, rows, result.gradient, student)
        if gradients.temperature is not None and result.slope is not None:
            gradients.temperature.add_(result.slope)
    return total, figures


def chunks(tokens: int, chunk_tokens: int) -> list[slice]:
    """The token ranges to work through, the last one as long as what is left."""
    return [slice(start, min(start + chunk_tokens, tokens)) for start in range(0, tokens, chunk_tokens)]


def statistics_dtype(hidden: Tensor, head: LinearHead) -> torch.dtype:
    """The dtype of logits, softmax and sums."""
    return torch.float64 if torch.float64 in (hidden.dtype, head.weight.dtype) else torch.float32


def operands(
    hidden: Tensor, head: LinearHead, read: Tensor, matmul_dtype: torch.dtype | None
) -> tuple[Tensor, LinearHead]:
    """What the matrix products multiply, with zeros where a token is not read: it may hold anything.

    The head's vocabulary is filled up with rows of zeros.
    """
    dtype = matmul_dtype or torch.promote_types(hidden.dtype, head.weight.dtype)
    bias = None if head.bias is None else head.bias.detach()
    weight, words = head.weight.detach(), filled_up(len(head.weight), hidden.device)
    if words > len(weight):
        room = weight.new_zeros(words, weight.shape[1], dtype=dtype)
        room[: len(weight)] = weight
        weight = room
    return hidden.detach().masked_fill(~read, 0).to(dtype), LinearHead(weight.to(dtype), bias)


def filled_up(vocabulary: int, device: torch.device) -> int:
    """Words of a vocabulary together with those that fill it up on this device."""
    return -(-vocabulary // GPU_MULTIPLE) * GPU_MULTIPLE if device.type == "cuda" else vocabulary


def fill_logits(out: Tensor, given: tuple[Tensor, LinearHead], rows: slice) -> None:
    """Write the logits of one chunk into `out`."""
    hidden, head = given
    room = _whole_rows(out)
    _matmul(room, hidden[rows], head.weight[: room.shape[1]].t(), add=False)
    if head.bias is not None:
        out.add_(head.bias)


def _whole_rows(logits: Tensor) -> Tensor:
    """A chunk's logits together with what fills up its vocabulary, where there is room for it behind each row."""
    words = max(logits.stride(0), logits.shape[1])
    return logits.as_strided((len(logits), words), (words, 1))


def _matmul(out: Tensor, left: Tensor, right: Tensor, add: bool) -> None:
    """Write left @ right into `out`, or add it, unrounded in between where the device can."""
    if out.dtype == left.dtype:
        torch.addmm(out, left, right, beta=int(add), out=out)
    elif left.is_cuda and out.dtype == torch.float32:
        torch.addmm(out, left, right, out_dtype=torch.float32, beta=int(add), out=out)
    else:
        product = left @ right
        out.add_(product) if add else out.copy_(product)


def _add_gradients(gradients: _Gradients, rows: slice, logits: Tensor, student: tuple[Tensor, LinearHead]) -> None:
    """Carry one chunk's gradient at the logits, in the products' dtype, to the hidden states and the head."""
    hidden, head = student
    room = _whole_rows(logits)
    words = room.shape[1]
    if gradients.hidden is not None:
        _matmul(gradients.hidden[rows], room, head.weight[:words], add=False)
    if gradients.weight is not None:
        _matmul(gradients.weight[:words], room.t(), hidden[rows], add=True)
    if gradients.bias is not None:
        gradients.bias.add_(logits.sum(dim=0, dtype=gradients.bias.dtype))
