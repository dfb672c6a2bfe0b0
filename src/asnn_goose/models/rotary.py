"""Rotary positions as Llama's family has them, for any position: what turns r and k before they are encoded."""

from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Tables = tuple[Float[Tensor, "rows time pairs"], Float[Tensor, "rows time pairs"]]
"""Cosine and sine of each pair's angle; one row serves a batch whose rows have the same positions."""


class RotaryPositions(nn.Module):
    """Turns the two halves of a head against each other by angles that grow with the position (Su et al. 2021).

    Args:
        inverse_frequencies: Radians a token for each pair of channels.
        scaling: Factor on the result, which is not 1 for some scaled forms.
    """

    def __init__(self, inverse_frequencies: tuple[float, ...], scaling: float = 1.0) -> None:
        super().__init__()
        # Not a buffer: the angles must not lose digits where a model is cast to half precision.
        self.inverse_frequencies, self.scaling = inverse_frequencies, scaling

    def tables(self, positions: Int[Tensor, "batch time"], dtype: torch.dtype) -> Tables:
        """Cosine and sine for inputs of the given dtype, in at least float32; rows are computed once if all are one."""
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        if positions.stride(0) == 0:
            positions = positions[:1]
        if torch.compiler.is_compiling():
            # A compiled graph holds them itself.
            rates = torch.tensor(self.inverse_frequencies, dtype=dtype, device=positions.device)
        else:
            rates = _rates(self.inverse_frequencies, dtype, positions.device)
        angles = positions.to(dtype).unsqueeze(-1) * rates  # rows time pairs
        return angles.cos() * self.scaling, angles.sin() * self.scaling


@cache
def _rates(frequencies: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The frequencies on a device, put there once: each copy waits for all that a GPU has been given before."""
    # An inference tensor could not take part in a later training step.
    with torch.inference_mode(False):
        return torch.tensor(frequencies, dtype=dtype, device=device)


def turn(x: Float[Tensor, "batch time heads head"], tables: Tables) -> Float[Tensor, "batch time heads head"]:
    """The heads, turned, computed in the tables' dtype."""
    cosine, sine = (table.unsqueeze(2) for table in tables)  # rows time 1 pairs
    first, second = x.to(cosine.dtype).chunk(2, dim=-1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(x.dtype)
