"""An endless sequence of shuffled rows in which a number alone says which row it is."""

from functools import lru_cache

import numpy as np
from jaxtyping import Int64


@lru_cache(maxsize=16)
def epoch_permutation(rows: int, seed: int, epoch: int) -> Int64[np.ndarray, " rows"]:
    """The order in which an epoch visits its rows: a read-only permutation of 0 to rows - 1."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    # Kept are the current epoch of each part of a mixture and the next, which a batch at the border reads both.
    permutation: Int64[np.ndarray, " rows"] = generator.permutation(np.arange(rows, dtype=np.int64))
    permutation.flags.writeable = False
    return permutation


def shuffled_places(rows: int, numbers: Int64[np.ndarray, " numbers"], seed: int) -> Int64[np.ndarray, " numbers"]:
    """The rows, by their place in a text of `rows`, with these numbers in the endless sequence of its epochs."""
    epochs, places = np.divmod(numbers, rows)
    found = np.empty_like(places)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        found[in_epoch] = epoch_permutation(rows, seed, int(epoch))[places[in_epoch]]
    return found
