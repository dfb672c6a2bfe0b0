"""How far a student's distribution q is from its teacher's p: the divergences that distillation minimizes.

    forward_kl        sum p log(p / q)                                   Hinton et al. 2015
    reverse_kl        sum q log(q / p)                                   Gu et al. 2024 (MiniLLM)
    jsd               c sum p log(p / m) + (1 - c) sum q log(q / m)      Agarwal et al. 2024 (GKD), equation 1
    skew_kl           sum p log(p / m)                                   Ko et al. 2024 (DistiLLM), equation 4
    total_variation   1/2 sum |p - q|                                    Wen et al. 2023 (f-DISTILL)

with m = c p + (1 - c) q and c the teacher's share. All in nats but the last, which lies between 0 and 1.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

DivergenceKind = Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "total_variation"]


@dataclass(frozen=True)
class Divergence:
    """One of them.

    Attributes:
        kind: Which.
        share: The teacher's share c of the mixture, in (0, 1); only `jsd` and `skew_kl` have one.

    Raises:
        ValueError: A share outside (0, 1).
    """

    kind: DivergenceKind = "forward_kl"
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"the teacher's share of a mixture must be in (0, 1), got {self.share}")

    @property
    def power(self) -> int:
        """The power of the temperature that keeps the gradient's size: its form with 2 would grow for the last."""
        return 1 if self.kind == "total_variation" else 2


FORWARD_KL = Divergence()


class Parts(NamedTuple):
    """What each word adds: to the divergence D, and as q dD/dq and p dD/dp."""

    value: Float[Tensor, "tokens vocabulary"]
    student: Float[Tensor, "tokens vocabulary"]
    teacher: Float[Tensor, "tokens vocabulary"]


def divergence_parts(
    log_teacher: Float[Tensor, "tokens vocabulary"],
    log_student: Float[Tensor, "tokens vocabulary"],
    divergence: Divergence,
) -> Parts:
    """The parts of a divergence, word by word; a word of probability 0 on the side that weighs it adds nothing.

    The gradient at the student's normalized logits is `student - q * student.sum()`, and so for the teacher's.
    """
    p, q, share = log_teacher.exp(), log_student.exp(), divergence.share
    match divergence.kind:
        case "forward_kl":
            gap = torch.where(p > 0, log_teacher - log_student, 0.0)
            return Parts(p * gap, -p, p * (gap + 1))
        case "reverse_kl":
            gap = torch.where(q > 0, log_student - log_teacher, 0.0)
            return Parts(q * gap, q * (gap + 1), -q)
        case "total_variation":
            sign = (p - q).sign()
            return Parts(0.5 * (p - q).abs(), -0.5 * sign * q, 0.5 * sign * p)
        case kind:
            mixture = share * p + (1 - share) * q
            # Where both are 0 neither weighs it.
            mixture = torch.where(mixture == 0, 1.0, mixture)
            log_mixture = mixture.log()
            of_teacher = torch.where(p > 0, log_teacher - log_mixture, 0.0)
            if kind == "skew_kl":
                teacher = p * (of_teacher + 1) - share * p * p / mixture
                return Parts(p * of_teacher, -(1 - share) * p * q / mixture, teacher)
            of_student = torch.where(q > 0, log_student - log_mixture, 0.0)
            teacher, student = share * p * of_teacher, (1 - share) * q * of_student
            return Parts(teacher + student, student, teacher)
