"""What spikes are asked about: principal components of the teacher's hidden states, and the bins of their scores.

Tokens are normalized one by one and the first of each row is left out, for GPT-2's kind puts activations there that
are forty times as large as all others: a component of raw states would say "this is the first token" and nothing else.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from asnn_goose.information.bins import bin_codes, equal_mass_borders
from asnn_goose.information.cka import normalized_tokens

FIRST_COUNTED = 1
"""Position from which on tokens count."""


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """The leading components of one hidden state of the teacher.

    Attributes:
        mean: Of normalized tokens.
        directions: Orthonormal columns, the direction of most variance first.
        borders: Of the bins of each component's scores, by calibration rows.
    """

    mean: Float64[Tensor, " width"]
    directions: Float64[Tensor, "width components"]
    borders: Float64[Tensor, "components borders"]

    def scores(self, hidden: Float[Tensor, "rows time width"]) -> Float64[Tensor, "rows counted components"]:
        """Of all tokens but the first of each row."""
        return (normalized_tokens(hidden[:, FIRST_COUNTED:]) - self.mean) @ self.directions

    def codes(self, scores: Float64[Tensor, "rows counted components"]) -> Int64[Tensor, "rows counted components"]:
        """The bins of scores."""
        return bin_codes(scores, self.borders)


def fit_targets(hidden: Float[Tensor, "rows time width"], components: int, bins: int) -> TeacherTargets:
    """Components and borders of calibration rows; each direction's largest entry is positive, so that it is one.

    Raises:
        ValueError: More components than channels, or fewer tokens than bins.
    """
    width = hidden.shape[-1]
    if components > width:
        raise ValueError(f"components must be at most the teacher's width of {width}, got {components}")
    tokens = normalized_tokens(hidden[:, FIRST_COUNTED:]).flatten(0, 1)
    mean = tokens.mean(dim=0)
    centered = tokens - mean
    # eigh sorts upwards
    leading = torch.linalg.eigh(centered.T @ centered).eigenvectors.flip(1)[:, :components]
    largest = leading.gather(0, leading.abs().argmax(dim=0, keepdim=True))
    directions = leading * largest.sign()
    return TeacherTargets(mean, directions, equal_mass_borders(centered @ directions, bins))
