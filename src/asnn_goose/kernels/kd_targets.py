"""Two more losses at a head, in chunks of tokens: against a teacher's top words, and against its dynamics.

The first is for targets that are kept on a disk: the teacher's k most likely words with their probabilities p, all
other words together as one, the tail. With P and Q teacher's and student's probabilities over these k + 1 outcomes it
is T**2 * KL(P || Q), as `kd_loss` states it. The second reads two layers of each model through its head and compares
how the log probabilities change from one to the other: 1 - cos of the two changes (Gong et al. 2025, FDD, the first
derivative; the trajectory beside it is a KL of `kd_loss` between such readings).
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from asnn_goose.kernels.head_chunks import ChunkResult, ChunkSpace, HeadLoss, LinearHead, Rule, head_loss
from asnn_goose.kernels.kd_loss import check_shapes

SMALLEST_TAIL = 1e-7
"""A tail's probability is at least this, of the teacher as of the student: one float32 step below 1."""
ROUNDING = 16
"""Changes of log probabilities shorter than so many roundings of them are no changes."""


@dataclass(frozen=True, eq=False)
class TopWords:
    """A teacher's most likely words of each token.

    Attributes:
        words: Their ids.
        log_probabilities: Their log probabilities at the temperature of the loss, over the whole vocabulary.
    """

    words: Int[Tensor, "tokens k"]
    log_probabilities: Float[Tensor, "tokens k"]


def top_words_sums(
    hidden: Float[Tensor, "tokens width"],
    head: LinearHead,
    targets: TopWords,
    valid: Bool[Tensor, " tokens"],
    temperature: float,
    chunk_tokens: int,
    matmul_dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """T**2 KL over the top words and the tail, summed over `valid` tokens, differentiable; and the KL, detached.

    Gradients reach hidden states and head, exact for any `chunk_tokens`. The tail's words share what the teacher left
    them in proportion to the student's own probabilities.

    Raises:
        ValueError: shapes that do not belong together, or a temperature or chunk that is not positive.
    """
    check_shapes(hidden, head, None, valid=len(valid), targets=len(targets.words))
    if temperature <= 0 or chunk_tokens < 1:
        raise ValueError(f"temperature and chunk_tokens must be above 0, got {temperature} and {chunk_tokens}")
    rule = partial(_top_words_rule, targets, valid[:, None], temperature)
    loss, figures = head_loss(hidden, head, None, None, HeadLoss(valid[:, None], chunk_tokens, matmul_dtype, rule, 1))
    return loss, figures[0]


def _top_words_rule(targets: TopWords, valid: Tensor, temperature: float, space: ChunkSpace) -> Rule:
    softmax = space.empty()

    def rule(rows: slice, student: Tensor, teacher: Tensor | None) -> ChunkResult:
        """KL between k + 1 outcomes; z only enters as q of a top word or as a share of the tail."""
        words, log_p = targets.words[rows].long(), targets.log_probabilities[rows].to(student.dtype)
        log_q_all = torch.log_softmax(student.div_(temperature), dim=-1, out=softmax[: len(student)])
        log_q = log_q_all.gather(1, words)
        p, q = log_p.exp(), log_q.exp()
        p_tail, q_tail = ((1 - part.sum(dim=-1, keepdim=True)).clamp_min(SMALLEST_TAIL) for part in (p, q))
        outcomes = (p * (log_p - log_q)).sum(dim=-1, keepdim=True) + p_tail * (p_tail.log() - q_tail.log())
        kl = outcomes.masked_fill(~valid[rows], 0).sum()
        gradient = None
        if space.gradient_wanted:
            # d/dz = q_j (1 - P / Q of its outcome), in which a tail word's outcome is the tail.
            share = valid[rows].to(student.dtype) * temperature
            gradient = log_q_all.exp_().mul_((1 - p_tail / q_tail) * share)
            gradient = gradient.scatter_(1, words, (q - p) * share).to(space.operand)
        return ChunkResult(temperature**2 * kl, kl[None], gradient)

    return rule


def dynamics_sums(
    layers: Float[Tensor, "tokens 2 width"],
    head: LinearHead,
    teacher_layers: Float[Tensor, "tokens 2 teacher_width"],
    teacher_head: LinearHead,
    valid: Bool[Tensor, " tokens"],
    chunk_tokens: int,
    matmul_dtype: torch.dtype | None = None,
) -> Float[Tensor, ""]:
    """1 - cos of the changes of student's and teacher's log probabilities, summed over `valid` tokens.

    `layers` are a token's hidden states of two layers, as the head reads them. Gradients reach both of the student's
    and its head, exact for any `chunk_tokens`. Where one model does not move the loss is 1, its gradient 0.

    Raises:
        ValueError: shapes that do not belong together, or a chunk that is not positive.
        VocabularyMismatchError: heads over different vocabularies.
    """
    given, wanted = layers.flatten(0, 1), teacher_layers.flatten(0, 1)
    check_shapes(given, head, (wanted, teacher_head), valid=2 * len(valid))
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be above 0, got {chunk_tokens}")
    # Both layers of a token stand next to each other, so that a chunk holds whole pairs.
    read = valid.repeat_interleave(2)[:, None]
    loss = HeadLoss(read, 2 * chunk_tokens, matmul_dtype, partial(_dynamics_rule, valid[:, None]), 0)
    return head_loss(given, head, (wanted, teacher_head), None, loss)[0]


def _direction(
    before: Float[Tensor, "tokens words"], after: Float[Tensor, "tokens words"]
) -> tuple[Float[Tensor, "tokens words"], Float[Tensor, "tokens 1"]]:
    """The unit vector of each change and its length, zeros and infinity where nothing but rounding changed."""
    change = after - before
    length = change.norm(dim=-1, keepdim=True)
    noise = ROUNDING * torch.finfo(change.dtype).eps * before.norm(dim=-1, keepdim=True)
    length = torch.where(length > noise, length, torch.inf)
    return change / length, length


def _dynamics_rule(valid: Tensor, space: ChunkSpace) -> Rule:
    def rule(rows: slice, student: Tensor, teacher: Tensor | None) -> ChunkResult:
        """The change d takes the gradient (cos * d / |d| - t / |t|) / |d|, and hands it on to both layers' logits."""
        if teacher is None:
            raise ValueError("dynamics are compared with a teacher's, got none")
        counts = valid[rows.start // 2 : rows.stop // 2].to(student.dtype)
        first, second = student.log_softmax(dim=-1).unflatten(0, (-1, 2)).unbind(1)
        before, after = teacher.log_softmax(dim=-1).unflatten(0, (-1, 2)).unbind(1)
        unit, length = _direction(first, second)
        direction, _ = _direction(before, after)
        cosine = (unit * direction).sum(dim=-1, keepdim=True)
        gradient = None
        if space.gradient_wanted:
            at_change = (unit * cosine - direction) * (counts / length)
            total = at_change.sum(dim=-1, keepdim=True)
            pair = (first.exp() * total - at_change, at_change - second.exp() * total)
            gradient = torch.stack(pair, dim=1).flatten(0, 1).to(space.operand)
        return ChunkResult(((1 - cosine) * counts).sum(), student.new_zeros(0), gradient)

    return rule
