"""Rotary positions as Llama's family has them, for any position: what turns r and k before they are encoded."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


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

    def forward(
        self, x: Float[Tensor, "batch time heads head"], positions: Int[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time heads head"]:
        """The heads, turned; angles are computed in at least float32."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        rates = torch.tensor(self.inverse_frequencies, dtype=dtype, device=x.device)
        angles = (positions.to(dtype).unsqueeze(-1) * rates).unsqueeze(2)  # batch time 1 pairs
        cosine, sine = angles.cos() * self.scaling, angles.sin() * self.scaling
        first, second = x.to(dtype).chunk(2, dim=-1)
        turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
        return turned.to(x.dtype)
