"""What takes the place of spikes to see what is lost with them, each keeping something and destroying the rest.

All share one signature. A row's draws follow from the seed and its index in the text alone, so batches change nothing;
other sites take other seeds if they are to be drawn independently.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import torch
from jaxtyping import Int8, Int64, Real
from torch import Tensor

from asnn_goose.information.randomness import random_bits, shifted_right

KEPT_DRAWS = 6
"""Batches and widths whose draws are kept: many sites ask for the same ones, one after another."""
ROW_BY_ROW = {"cpu"}
"""Devices where a row at a time is fastest, since it stays in the cache; elsewhere each call costs more than a row."""
KEY_BITS = 40
"""Random bits of what an order is sorted by; the token's number stands behind them."""
# Of spikes, the seed and the index of the batch's first row.
Control = Callable[[Tensor, int, int], Tensor]


def shift_in_time(
    spikes: Real[Tensor, "rows time width"], seed: int, first_row: int
) -> Real[Tensor, "rows time width"]:
    """Each row turned by at least a quarter of its length either way: its content stands, elsewhere.

    Keeps rates, which channels spike together, and what follows what (the row's circular autocorrelation).

    Raises:
        ValueError: Rows of fewer than 2 tokens.
    """
    rows, time, _ = spikes.shape
    if time < 2:
        raise ValueError(f"a shift in time needs rows of at least 2 tokens, got {time}")
    return _take(spikes, _shifts(seed, range(first_row, first_row + rows), time, spikes.device))


def shuffle_in_time(
    spikes: Real[Tensor, "rows time width"], seed: int, first_row: int
) -> Real[Tensor, "rows time width"]:
    """The tokens of each row in another order: keeps rates and which channels spike together."""
    rows, time, _ = spikes.shape
    return _take(spikes, _orders(seed, range(first_row, first_row + rows), time, 1, spikes.device).squeeze(1))


def rate_matched_noise(
    spikes: Real[Tensor, "rows time width"], seed: int, first_row: int
) -> Real[Tensor, "rows time width"]:
    """Each channel of each row in an order of its own: noise that knows no token.

    Keeps each channel's values, and with them its rate, magnitudes and balance of signs, exactly: they are drawn
    without replacement.
    """
    rows, time, width = spikes.shape
    by_channel = spikes.transpose(1, 2).contiguous()
    orders = _orders(seed, range(first_row, first_row + rows), time, width, spikes.device)
    moved = torch.empty_like(by_channel)
    for part in row_parts(rows, spikes.device):
        torch.gather(by_channel[part], 2, orders[part], out=moved[part])
    return moved.transpose(1, 2).contiguous()


def shuffle_signs(
    spikes: Real[Tensor, "rows time width"], seed: int, first_row: int
) -> Real[Tensor, "rows time width"]:
    """Each spike with a sign drawn by a fair coin: keeps where spikes are and how large."""
    rows, time, width = spikes.shape
    size, signs = spikes.abs(), _signs(seed, range(first_row, first_row + rows), time, width, spikes.device)
    for part in row_parts(rows, spikes.device):
        size[part] *= signs[part]
    return size


def flip_signs(spikes: Real[Tensor, "rows time width"], seed: int, first_row: int) -> Real[Tensor, "rows time width"]:
    """Each spike with the other sign: keeps all information, for whoever knows; nothing is drawn."""
    del seed, first_row
    return -spikes


def row_parts(rows: int, device: torch.device) -> Iterator[slice]:
    """The rows of a batch as they are best worked on: each by itself, or all together."""
    step = 1 if device.type in ROW_BY_ROW else max(1, rows)
    return (slice(first, first + step) for first in range(0, rows, step))


def forget_draws() -> None:
    """Let go of the draws that are kept, as when a validation is over."""
    for kept in (_shifts, _orders, _signs):
        kept.cache_clear()


@lru_cache(maxsize=KEPT_DRAWS)
def _shifts(seed: int, rows: range, time: int, device: torch.device) -> Int64[Tensor, "rows time"]:
    """Of each row the places from which its tokens come."""
    least = -(-time // 4)
    offsets = least + shifted_right(random_bits(seed, rows, 1, device), 64 - KEY_BITS) % (time - 2 * least + 1)
    return (torch.arange(time, device=device) - offsets) % time


@lru_cache(maxsize=KEPT_DRAWS)
def _orders(seed: int, rows: range, time: int, width: int, device: torch.device) -> Int64[Tensor, "rows width time"]:
    """An order of a row's tokens for each channel, the same for all sites of one width."""
    return torch.cat([_drawn_orders(seed, rows[part], time, width, device) for part in row_parts(len(rows), device)])


def _drawn_orders(
    seed: int, rows: range, time: int, width: int, device: torch.device
) -> Int64[Tensor, "rows width time"]:
    # Numbers that hold random bits and, where those are equal, the token: sorted they are the order itself, far sooner
    # than by a stable argsort.
    keys = shifted_right(random_bits(seed, rows, width * time, device), 64 - KEY_BITS).view(len(rows), width, time)
    keys.mul_(time).add_(torch.arange(time, device=device))
    if device.type == "cpu":
        # In place, and several times faster than torch sorts.
        keys.numpy().sort(axis=2)
        return keys.remainder_(time)
    return keys.sort(dim=2).values.remainder_(time)


@lru_cache(maxsize=KEPT_DRAWS)
def _signs(seed: int, rows: range, time: int, width: int, device: torch.device) -> Int8[Tensor, "rows time width"]:
    """A sign for each channel of each of a row's tokens, the same for all sites of one width."""
    coins = (
        shifted_right(random_bits(seed, rows[part], time * width, device), 63) for part in row_parts(len(rows), device)
    )
    return torch.cat([coin.mul_(2).sub_(1).to(torch.int8) for coin in coins]).view(len(rows), time, width)


def _take(
    spikes: Real[Tensor, "rows time width"], places: Int64[Tensor, "rows time"]
) -> Real[Tensor, "rows time width"]:
    """Of each row the tokens at these places."""
    rows, time, _ = spikes.shape
    tokens = places + time * torch.arange(rows, device=spikes.device).unsqueeze(1)
    return spikes.flatten(0, 1).index_select(0, tokens.flatten()).view_as(spikes)
