"""Interpolated Kneser-Ney trigrams over token ids: the model that counts, which a teacher has to beat.

With c the counts, and N(. b c) the number of different tokens seen before b c:

    p3(c | a b) = max(c(a b c) - D3, 0) / c(a b)  +  D3 * types(a b .) / c(a b)  * p2(c | b)
    p2(c | b)   = max(N(. b c) - D2, 0) / N(. b .) + D2 * types(b .) / N(. b .) * p1(c)
    p1(c)       = max(N(. c) - D1, 0) / N(. .)    +  D1 * types(.) / N(. .)     * 1 / vocabulary

An order's discount is D = n1 / (n1 + 2 n2), with n1 and n2 the number of its entries counted once and twice.
Source: Ney, Essen and Kneser 1994; Chen and Goodman 1999, section 4.1.6.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Integer


@dataclass(frozen=True, eq=False)
class _Order:
    """Counts of one order's n-grams, and the sums over all that begin with the same history; keys sorted."""

    keys: Int64[np.ndarray, " entries"]
    counts: Int64[np.ndarray, " entries"]
    histories: Int64[np.ndarray, " histories"]
    totals: Int64[np.ndarray, " histories"]
    types: Int64[np.ndarray, " histories"]
    discount: float


class KneserNeyTrigram:
    """A trigram model of a row of token ids."""

    def __init__(self, tokens: Integer[np.ndarray, " tokens"], vocabulary: int) -> None:
        """Count the tokens' trigrams.

        Raises:
            ValueError: There are fewer than three tokens, or one is not in the vocabulary.
        """
        if len(tokens) < 3 or tokens.min() < 0 or tokens.max() >= vocabulary:
            raise ValueError(f"a trigram model needs three tokens or more, all of them in [0, {vocabulary})")
        self.vocabulary = vocabulary
        ids = tokens.astype(np.int64)
        trigrams, counts = np.unique(_keys(vocabulary, ids[:-2], ids[1:-1], ids[2:]), return_counts=True)
        # Below the highest order a token's count is the number of different tokens it follows.
        bigrams, preceding = np.unique(trigrams % vocabulary**2, return_counts=True)
        unigrams, continued = np.unique(bigrams % vocabulary, return_counts=True)
        self._orders = [
            _order(keys, number, vocabulary)
            for keys, number in ((unigrams, continued), (bigrams, preceding), (trigrams, counts))
        ]

    def probabilities(
        self,
        first: Integer[np.ndarray, " queries"],
        second: Integer[np.ndarray, " queries"],
        third: Integer[np.ndarray, " queries"],
    ) -> Float64[np.ndarray, " queries"]:
        """Probability of each `third` token after the two before it."""
        columns = [column.astype(np.int64) for column in (third, second, first)]
        result = np.full(len(third), 1.0 / self.vocabulary)
        for place, order in enumerate(self._orders):
            history = _keys(self.vocabulary, *reversed(columns[1 : place + 1])) + np.zeros_like(columns[0])
            result = _interpolate(order, history, history * self.vocabulary + columns[0], result)
        return result

    def loss_nats(self, tokens: Integer[np.ndarray, " tokens"]) -> Float64[np.ndarray, " predicted"]:
        """Negative log-probability of each token from the third on."""
        return -np.log(self.probabilities(tokens[:-2], tokens[1:-1], tokens[2:]))


def _keys(vocabulary: int, *columns: Int64[np.ndarray, " entries"]) -> Int64[np.ndarray, " entries"]:
    """Each row of the columns as one number; zero if there are no columns."""
    keys = np.zeros(len(columns[0]) if columns else 1, dtype=np.int64)
    for column in columns:
        keys = keys * vocabulary + column
    return keys


def _order(keys: Int64[np.ndarray, " entries"], counts: Int64[np.ndarray, " entries"], vocabulary: int) -> _Order:
    histories, starts, types = np.unique(keys // vocabulary, return_index=True, return_counts=True)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return _Order(
        keys=keys,
        counts=counts.astype(np.int64),
        histories=histories,
        totals=np.add.reduceat(counts, starts).astype(np.int64),
        types=types.astype(np.int64),
        # A text so small that nothing is counted once or twice has no such ratio; one half is between its bounds.
        discount=once / (once + 2 * twice) if once else 0.5,
    )


def _interpolate(
    order: _Order,
    history: Int64[np.ndarray, " queries"],
    key: Int64[np.ndarray, " queries"],
    lower: Float64[np.ndarray, " queries"],
) -> Float64[np.ndarray, " queries"]:
    """The order's probabilities, or the lower order's where the history was never seen."""
    place, seen = _find(order.histories, history)
    entry, counted = _find(order.keys, key)
    total = order.totals[place]
    own = np.where(counted, np.maximum(order.counts[entry] - order.discount, 0.0), 0.0) / total
    return np.where(seen, own + order.discount * order.types[place] / total * lower, lower)


def _find(
    keys: Int64[np.ndarray, " entries"], wanted: Int64[np.ndarray, " queries"]
) -> tuple[Int64[np.ndarray, " queries"], np.ndarray]:
    """Where each wanted key stands, and whether it does."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return places, keys[places] == wanted
