"""What takes the place of spikes to see what is lost with them, each keeping something and destroying the rest.

All share one signature. A row's draws follow from the seed and its index in the text alone, so batches change nothing;
other sites take other seeds if they are to be drawn independently.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from jaxtyping import Int8, Int64, Real, Shaped
from torch import Tensor

from asnn_goose.information.randomness import generator_for

KEPT_DRAWS = 128
"""Rows and widths whose orders and signs are kept: many sites ask for the same ones, one after another."""
ROW_BY_ROW = {"cpu"}
"""Devices where a row at a time is fastest, since it stays in the cache; elsewhere each call costs more than a row."""
FINEST_KEY = 2**24
"""Random numbers in float32 are whole multiples of one part in so many."""
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
    time = spikes.shape[1]
    least = -(-time // 4)
    if time < 2:
        raise ValueError(f"a shift in time needs rows of at least 2 tokens, got {time}")
    offsets = _draw(
        spikes, seed, first_row, lambda generator: torch.randint(least, time - least + 1, (1,), generator=generator)
    )
    return _take(spikes, (torch.arange(time, device=spikes.device) - offsets) % time)


def shuffle_in_time(
    spikes: Real[Tensor, "rows time width"], seed: int, first_row: int
) -> Real[Tensor, "rows time width"]:
    """The tokens of each row in another order: keeps rates and which channels spike together."""
    time = spikes.shape[1]
    return _take(spikes, _draw(spikes, seed, first_row, lambda generator: torch.randperm(time, generator=generator)))


def rate_matched_noise(
    spikes: Real[Tensor, "rows time width"], seed: int, first_row: int
) -> Real[Tensor, "rows time width"]:
    """Each channel of each row in an order of its own: noise that knows no token.

    Keeps each channel's values, and with them its rate, magnitudes and balance of signs, exactly: they are drawn
    without replacement.
    """
    _, time, width = spikes.shape
    by_channel = spikes.transpose(1, 2).contiguous()
    orders = (_orders(seed, first_row + place, time, width, spikes.device) for place in range(len(spikes)))
    if spikes.device.type not in ROW_BY_ROW:
        return by_channel.gather(2, torch.stack([*orders])).transpose(1, 2).contiguous()
    moved = torch.empty_like(by_channel)
    for place, order in enumerate(orders):
        torch.gather(by_channel[place], 1, order, out=moved[place])
    return moved.transpose(1, 2).contiguous()


@lru_cache(maxsize=KEPT_DRAWS)
def _orders(seed: int, row: int, time: int, width: int, device: torch.device) -> Int64[Tensor, "width time"]:
    """An order of a row's tokens for each channel, the same for all sites of one width."""
    keys = torch.rand(width, time, generator=generator_for(seed, row))
    # Whole numbers that hold the key and, where keys are equal, the token: sorted they are the order itself, far sooner
    # than by a stable argsort.
    ordered = ((keys * FINEST_KEY).long() * time + torch.arange(time)).numpy()
    ordered.sort(axis=1)
    return torch.from_numpy(ordered % time).to(device)


def shuffle_signs(
    spikes: Real[Tensor, "rows time width"], seed: int, first_row: int
) -> Real[Tensor, "rows time width"]:
    """Each spike with a sign drawn by a fair coin: keeps where spikes are and how large."""
    _, time, width = spikes.shape
    size = spikes.abs()
    signs = (_signs(seed, first_row + place, time, width, spikes.device) for place in range(len(spikes)))
    if spikes.device.type not in ROW_BY_ROW:
        return size.mul_(torch.stack([*signs]))
    for place, sign in enumerate(signs):
        size[place] *= sign
    return size


@lru_cache(maxsize=KEPT_DRAWS)
def _signs(seed: int, row: int, time: int, width: int, device: torch.device) -> Int8[Tensor, "time width"]:
    """A sign for each channel of each of a row's tokens, the same for all sites of one width."""
    coins = torch.randint(2, (time, width), generator=generator_for(seed, row))
    return (2 * coins - 1).to(device, torch.int8)


def flip_signs(spikes: Real[Tensor, "rows time width"], seed: int, first_row: int) -> Real[Tensor, "rows time width"]:
    """Each spike with the other sign: keeps all information, for whoever knows; nothing is drawn."""
    del seed, first_row
    return -spikes


def _draw(
    spikes: Real[Tensor, "rows time width"],
    seed: int,
    first_row: int,
    draw: Callable[[torch.Generator], Tensor],
) -> Shaped[Tensor, "rows ..."]:
    """One draw a row, on the device of the spikes."""
    rows = range(first_row, first_row + len(spikes))
    return torch.stack([draw(generator_for(seed, row)) for row in rows]).to(spikes.device)


def _take(
    spikes: Real[Tensor, "rows time width"], places: Int64[Tensor, "rows time"]
) -> Real[Tensor, "rows time width"]:
    """Of each row the tokens at these places."""
    rows, time, _ = spikes.shape
    tokens = places + time * torch.arange(rows, device=spikes.device).unsqueeze(1)
    return spikes.flatten(0, 1).index_select(0, tokens.flatten()).view_as(spikes)
