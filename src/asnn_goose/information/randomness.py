"""Random draws that depend on numbers alone, such as a seed and a row's index: never on batches, device or history."""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from jaxtyping import Int64
from torch import Tensor

# SplitMix64 (Steele, Lea & Flood 2014): the step of its counter, then factors and shifts of its mixing function.
STEP = 0x9E3779B97F4A7C15
MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST_SHIFT = 31


def generator_for(*numbers: int) -> torch.Generator:
    """A generator on the CPU whose state follows from these numbers and their order."""
    return torch.Generator().manual_seed(_digest(*numbers))


def random_bits(
    seed: int, rows: Sequence[int], count: int, device: torch.device | str = "cpu"
) -> Int64[Tensor, "rows count"]:
    """64 random bits for each of `count` places of each row, made where they are wanted, the same on any device.

    Place i of a row holds what SplitMix64 gives as its i-th number when it starts at a state that follows from the seed
    and the row: whole-number arithmetic modulo 2**64, without a loop.
    """
    states = torch.tensor([[_signed(_digest(seed, row))] for row in rows], device=device)
    bits = torch.arange(1, count + 1, device=device).mul_(_signed(STEP)) + states
    for shift, factor in MIXING:
        bits = bits.bitwise_xor_(shifted_right(bits, shift)).mul_(_signed(factor))
    return bits.bitwise_xor_(shifted_right(bits, LAST_SHIFT))


def shifted_right(bits: Int64[Tensor, "*batch"], places: int) -> Int64[Tensor, "*batch"]:
    """The upper bits as numbers from 0 on: zeros come in from the left, where torch's shift repeats the sign."""
    return (bits >> places).bitwise_and_((1 << (64 - places)) - 1)


def _digest(*numbers: int) -> int:
    """64 bits that follow from these numbers and their order."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest(), "little")


def _signed(bits: int) -> int:
    """The same 64 bits as torch holds them."""
    return bits - (1 << 64) if bits >> 63 else bits
