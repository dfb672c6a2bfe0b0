"""How far two hidden states of the same tokens are apart: the errors of hidden alignment, and CKA.

The teacher's state is never differentiated through where it is a constant; sums are at least float32.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

SMALLEST_POWER = 1e-12
LEAST_SPREAD = 1e-2
SMALLEST_NORM = 1e-8
"""What the record adds to norms that it divides by."""
RELATION_TEMPERATURE = 0.1
"""Divides cosines between tokens: at 1 their softmax would hardly differ from the mean over tokens."""
BARRED = -1e4

StateError = Callable[[Tensor, Tensor], Tensor]
"""From a student's state and a teacher's, [batch time width] each, to a number."""


def channel_error(
    student: Float[Tensor, "batch time width"], teacher: Float[Tensor, "batch time width"]
) -> Float[Tensor, ""]:
    """(student - teacher)^2 over each channel's variance in the teacher, averaged over channels and tokens."""
    wanted = _precise(teacher)
    with torch.no_grad():
        spread = wanted.flatten(0, 1).var(dim=0, correction=0)
        # A channel that hardly ever moves must not outweigh those that do.
        spread = spread.clamp_min(LEAST_SPREAD * spread.median()).clamp_min(SMALLEST_POWER)
    return ((_precise(student) - wanted).square() / spread).mean()


def squared_error(
    student: Float[Tensor, "batch time width"], teacher: Float[Tensor, "batch time width"]
) -> Float[Tensor, ""]:
    """(student - teacher)^2, averaged over channels and tokens."""
    return (_precise(student) - _precise(teacher)).square().mean()


def cosine_error(
    student: Float[Tensor, "batch time width"], teacher: Float[Tensor, "batch time width"]
) -> Float[Tensor, ""]:
    """1 - cos(student, teacher), averaged over tokens; 1 where one of them is 0."""
    return (1 - functional.cosine_similarity(_precise(student), _precise(teacher), dim=-1)).mean()


def relative_error(
    student: Float[Tensor, "batch time width"], teacher: Float[Tensor, "batch time width"]
) -> Float[Tensor, ""]:
    """|student - teacher|^2 / |teacher|^2 of each token, averaged over tokens."""
    wanted = _precise(teacher)
    power = wanted.square().sum(dim=-1).clamp_min(SMALLEST_POWER)
    return ((_precise(student) - wanted).square().sum(dim=-1) / power).mean()


def cka_error(
    student: Float[Tensor, "batch time width"], teacher: Float[Tensor, "batch time other"]
) -> Float[Tensor, ""]:
    """1 - linear CKA of all tokens, each brought to unit length first.

    Otherwise one loud token, as GPT-2's first one is, would be all that CKA sees: it moves the mean, and thereby
    every row.
    """
    x, y = (
        functional.normalize(_precise(part.flatten(0, 1)), dim=-1, eps=SMALLEST_NORM) for part in (student, teacher)
    )
    return 1 - linear_cka(x, y)


def relation_error(
    student: Float[Tensor, "batch time width"], teacher: Float[Tensor, "batch time other"]
) -> Float[Tensor, ""]:
    """KL from the teacher's relations to the student's, in nats, averaged over all tokens that have an earlier one.

    A token's relations are softmax over earlier tokens j of cos(h_i, h_j) / RELATION_TEMPERATURE.
    """
    found, wanted = _log_relations(student), _log_relations(teacher)
    return (wanted.exp() * (wanted - found)).sum(dim=-1).mean()


STATE_ERRORS: Mapping[str, StateError] = {
    "channel": channel_error,
    "mse": squared_error,
    "cosine": cosine_error,
    "relative_l2": relative_error,
    "cka": cka_error,
    "relation": relation_error,
}
"""By the name that a recipe gives them."""
WIDTH_FREE = ("cka", "relation")
"""Errors of states whose widths may differ."""


def linear_cka(
    x: Float[Tensor, "rows width"], y: Float[Tensor, "rows other"], unit_rows: bool = False
) -> Float[Tensor, ""]:
    """Linear centered kernel alignment, 0 to 1: |X'Y|^2 / (|X'X| |Y'Y|) of matrices whose columns have mean 0.

    The same for X turned by an orthogonal matrix, or multiplied by a number. Equal to the sum of K_x K_y over the root
    of the sums of their squares, with K = X X', which the record computes; this form needs no matrix of rows x rows.

    Args:
        x: One row a token.
        y: The same tokens.
        unit_rows: Divide each centered row by its length, as the record does.

    Source: Kornblith et al. 2019, equation 5.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = _centered(x, unit_rows), _centered(y, unit_rows)
        cross = (x.T @ y).square().sum()
        scale = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
        alignment: Tensor = cross / (scale + SMALLEST_NORM)
        return alignment.clamp(0.0, 1.0)


def _centered(x: Tensor, unit_rows: bool) -> Tensor:
    centered = _precise(x)
    centered = centered - centered.mean(dim=0)
    return centered / (centered.norm(dim=-1, keepdim=True) + SMALLEST_NORM) if unit_rows else centered


def _log_relations(states: Tensor) -> Tensor:
    with torch.autocast(states.device.type, enabled=False):
        unit = functional.normalize(_precise(states), dim=-1, eps=SMALLEST_NORM)
        cosines = unit @ unit.mT / RELATION_TEMPERATURE
        later = torch.ones(cosines.shape[-2:], dtype=torch.bool, device=cosines.device).triu()
        # The first token has no earlier one.
        return cosines.masked_fill(later, BARRED)[:, 1:].log_softmax(dim=-1)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
