"""One chunk of the distillation loss in torch: from both models' logits to sums and the gradient at the logits.

Each logit array is read and overwritten as few times as torch allows; `kd_loss` states the equations. Forward KL,
which every recipe has by default, works in place, at a given temperature or one that learns (1.3 times the time); the
rest is written as it is defined.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from asnn_goose.kernels.divergences import Divergence, divergence_parts
from asnn_goose.kernels.head_chunks import ChunkResult, ChunkSpace


@dataclass(frozen=True)
class ChunkPlan:
    """What stays the same from chunk to chunk.

    labels: the scored token's id, anything in the vocabulary where `scored` is False. valid: the tokens the
    divergence counts. reports_cross_entropy: False if no token is scored, which saves a pass.
    """

    temperature: float | Float[Tensor, ""]
    divergence: Divergence
    labels: Int[Tensor, "tokens 1"]
    scored: Bool[Tensor, "tokens 1"]
    valid: Bool[Tensor, "tokens 1"]
    divergence_weight: float | Float[Tensor, ""]
    cross_entropy_weight: float | Float[Tensor, ""]
    reports_cross_entropy: bool

    @property
    def is_plain(self) -> bool:
        """Whether it is a forward KL at a temperature that the host may look at without waiting."""
        known = not isinstance(self.temperature, Tensor) or self.temperature.device.type == "cpu"
        return known and self.divergence.kind == "forward_kl"

    @property
    def weighs_teacher(self) -> bool:
        """Whether the divergence is part of the loss; a weight on a device may be anything."""
        return isinstance(self.divergence_weight, Tensor) or self.divergence_weight != 0

    @property
    def weighs_labels(self) -> bool:
        """Whether the cross entropy is part of the loss, likewise."""
        return isinstance(self.cross_entropy_weight, Tensor) or self.cross_entropy_weight != 0


class TorchRule:
    """The loss of a chunk, in torch.

    Args:
        plan: What the loss is.
        space: Sizes, number types and what is asked for.
    """

    def __init__(self, plan: ChunkPlan, space: ChunkSpace) -> None:
        self.plan, self.wanted = plan, space.gradient_wanted
        self.slope_wanted = space.slope_wanted
        rounds = self.wanted and space.operand != space.statistics
        separate = plan.is_plain and plan.weighs_teacher and self.wanted and plan.weighs_labels
        self.spare = space.empty()
        self.softmax = space.empty() if separate and plan.temperature != 1 else None
        self.probability = space.empty() if plan.is_plain and self.slope_wanted else None
        self.rounded = space.empty(space.operand) if rounds else None

    def __call__(self, rows: slice, student: Tensor, teacher: Tensor | None) -> ChunkResult:
        """Sums over the chunk, and the gradient at the student's logits."""
        plan, slope = self.plan, None
        if plan.is_plain or teacher is None:
            divergence, cross_entropy, gradient, slope = self._in_place(rows, student, teacher)
        else:
            divergence, cross_entropy, gradient, slope = self._by_definition(rows, student, teacher)
        factor = plan.divergence_weight * plan.temperature**plan.divergence.power
        loss = factor * divergence + plan.cross_entropy_weight * cross_entropy
        if gradient is not None and self.rounded is not None:
            gradient = self.rounded[: len(gradient)].copy_(gradient)
        return ChunkResult(loss, torch.stack((divergence, cross_entropy)), gradient, slope)

    def _in_place(
        self, rows: slice, student: Tensor, teacher: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Forward KL, if there is a teacher, and cross entropy."""
        plan, none, spare = self.plan, student.new_zeros(()), self.spare[: len(student)]
        if teacher is None:
            return none, *_cross_entropy(student, spare, rows, plan, self.wanted), None
        probability = None if self.probability is None else self.probability[: len(student)]
        if plan.temperature == 1:
            return _forward_kl((student, spare, teacher, probability), rows, plan, self.wanted)
        cross_entropy, addend = none, None
        if plan.reports_cross_entropy:
            out = spare if self.softmax is None else self.softmax[: len(student)]
            cross_entropy, addend = _cross_entropy(student, out, rows, plan, self.wanted)
        student.div_(plan.temperature)
        teacher.div_(plan.temperature)
        places = student, spare, teacher, probability
        divergence, _, gradient, slope = _forward_kl(places, rows, plan, self.wanted)
        if gradient is not None and addend is not None:
            gradient.add_(addend)
        return divergence, cross_entropy, gradient, slope

    def _by_definition(
        self, rows: slice, student: Tensor, teacher: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Any divergence at any temperature, and its slope by the temperature."""
        plan, temperature = self.plan, self.plan.temperature
        valid = plan.valid[rows]
        log_teacher, log_student = ((part / temperature).log_softmax(dim=-1) for part in (teacher, student))
        parts = divergence_parts(log_teacher, log_student, plan.divergence)
        divergence = parts.value.sum(dim=-1, keepdim=True).masked_fill(~valid, 0).sum()
        slope = gradient = None
        if self.wanted or self.slope_wanted:
            at_student = _through_softmax(parts.student, log_student)
            # d/dz of weight * T^power * D(z / T).
            share = valid.to(student.dtype) * plan.divergence_weight * temperature ** (plan.divergence.power - 1)
            gradient = at_student * share
        if self.slope_wanted and gradient is not None:
            at_teacher = _through_softmax(parts.teacher, log_teacher) * share
            moved = (gradient * student).sum() + (at_teacher * teacher).sum()
            value = plan.divergence_weight * temperature**plan.divergence.power * divergence
            slope = (plan.divergence.power * value - moved) / temperature
        cross_entropy, addend = student.new_zeros(()), None
        if plan.reports_cross_entropy:
            cross_entropy, addend = _cross_entropy(student, self.spare[: len(student)], rows, plan, self.wanted)
        if gradient is not None and addend is not None:
            gradient = gradient + addend
        return divergence, cross_entropy, gradient if self.wanted else None, slope


def _through_softmax(parts: Tensor, log_softmax: Tensor) -> Tensor:
    """The gradient at normalized logits from q dD/dq."""
    return parts - log_softmax.exp() * parts.sum(dim=-1, keepdim=True)


def _cross_entropy(
    logits: Tensor, out: Tensor, rows: slice, plan: ChunkPlan, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Cross entropy at the temperature of `logits`, and its weighted gradient, formed in `out`."""
    labels, scored = plan.labels[rows], plan.scored[rows]
    loss = token_losses(torch.log_softmax(logits, dim=-1, out=out), labels, scored).sum()
    if not wanted or not plan.weighs_labels:
        return loss, None
    share = scored.to(out.dtype) * plan.cross_entropy_weight
    return loss, out.exp_().mul_(share).scatter_add_(1, labels, -share)


def _forward_kl(
    places: tuple[Tensor, Tensor, Tensor, Tensor | None], rows: slice, plan: ChunkPlan, wanted: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """KL between logits already divided by the temperature, and the weighted gradient before that division.

    At temperature 1 the cross entropy comes along, from the same softmax. All arrays are used up: the student's, a
    spare one, the teacher's, and where the slope by the temperature is wanted one for probabilities.
    """
    student, spare, teacher, room = places
    labels, scored, valid = plan.labels[rows], plan.scored[rows], plan.valid[rows]
    log_teacher = torch.log_softmax(teacher, dim=-1, out=spare)
    log_student = torch.log_softmax(student, dim=-1, out=teacher)
    difference = torch.sub(log_teacher, log_student, out=student)
    cross_entropy = log_student.new_zeros(())
    shares_softmax = plan.temperature == 1 and plan.reports_cross_entropy
    if shares_softmax:
        cross_entropy = token_losses(log_student, labels, scored).sum()
    slope, drift = None, student.new_zeros(())
    if room is not None:
        drift = _row_products(torch.exp(log_student, out=room), log_student)
    probability = log_teacher.exp_() if room is None else torch.exp(log_teacher, out=room)
    token_kl = difference.mul_(probability).sum(dim=-1, keepdim=True)
    if room is not None:
        slope = _slope(token_kl, difference, probability, log_teacher, drift) * plan.divergence_weight
        slope = slope.masked_fill_(~valid, 0).sum() * plan.temperature
    kl = token_kl.masked_fill_(~valid, 0).sum()
    if not wanted:
        return kl, cross_entropy, None, slope
    kl_share = valid.to(kl.dtype) * (plan.divergence_weight * plan.temperature)
    gradient = log_student.exp_()
    if not shares_softmax or not plan.weighs_labels:
        return kl, cross_entropy, gradient.sub_(probability).mul_(kl_share), slope
    label_share = scored.to(kl.dtype) * plan.cross_entropy_weight
    gradient.mul_(kl_share + label_share).addcmul_(probability, kl_share, value=-1)
    return kl, cross_entropy, gradient.scatter_add_(1, labels, -label_share), slope


def _slope(kl: Tensor, weighed: Tensor, p: Tensor, log_p: Tensor, drift: Tensor) -> Tensor:
    """The slope of T^2 KL by T, over T, a column: 2 KL - <q - p, log q> - <p (log(p / q) - KL), log p>.

    Constants drop out of both products, since q - p and p (log(p / q) - KL) sum to 0: they may stand for the logits.
    `weighed` is p log(p / q), and `drift` <q, log q>.
    """
    entropy = _row_products(p, log_p)
    return 2 * kl - drift + (entropy - kl) - _row_products(weighed, log_p) + kl * entropy


def _row_products(left: Tensor, right: Tensor) -> Tensor:
    """The sum of the products of each row, a column."""
    products: Tensor = torch.linalg.vecdot(left, right)
    return products[:, None]


def token_losses(log_softmax: Tensor, labels: Tensor, scored: Tensor) -> Tensor:
    """Minus the label's log probability, a column, 0 where there is no label."""
    return log_softmax.gather(1, labels).neg_().masked_fill_(~scored, 0)
