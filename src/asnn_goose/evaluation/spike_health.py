"""How the channels of a site spike: counts that are added up row by row, and the figures they give."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from asnn_goose.information.controls import row_parts
from asnn_goose.information.mutual_information import entropy_bits
from asnn_goose.validation_results import RATE_BINS, SiteHealth

DEAD_RATE = 1e-3
"""A channel that spikes more rarely is dead, as recorded for v15."""


class HealthCounts:
    """How often each channel of one site sent each value, and changed it.

    Attributes:
        tokens: How many were counted.
    """

    def __init__(self, width: int, levels: int, device: torch.device | str = "cpu") -> None:
        self.tokens = self._pairs = 0
        self._levels = levels
        self._values = torch.zeros(width, 2 * levels + 1, dtype=torch.int64, device=device)
        self._changes = torch.zeros(width, dtype=torch.int64, device=device)

    def add(self, spikes: Float[Tensor, "rows time width"]) -> None:
        """Count whole rows."""
        # Sums of zeros and ones as products of matrices, exact in float32 for the tokens of a row.
        for part in row_parts(len(spikes), spikes.device):
            some = spikes[part]
            met = torch.empty(some.shape, dtype=torch.float32, device=some.device)
            ones = torch.ones(some.shape[1], device=some.device)
            for code in range(2 * self._levels + 1):
                torch.eq(some, code - self._levels, out=met)
                self._values[:, code] += (ones @ met).long().sum(dim=0)
            torch.ne(some[:, 1:], some[:, :-1], out=met[:, 1:])
            self._changes += (ones[1:] @ met[:, 1:]).long().sum(dim=0)
        rows, time, _ = spikes.shape
        self.tokens += rows * time
        self._pairs += rows * (time - 1)

    def channel_rates(self) -> Float[Tensor, " width"]:
        """Share of tokens at which each channel spikes."""
        return 1 - self._values[:, self._levels].double() / self.tokens

    def summary(self, layer: int, site: str) -> SiteHealth:
        """The site's figures."""
        rates = self.channel_rates()
        totals = self._values.sum(dim=0)
        sizes = torch.arange(-self._levels, self._levels + 1, device=totals.device)
        positive, negative = int(totals[sizes > 0].sum()), int(totals[sizes < 0].sum())
        spikes, events = positive + negative, int((totals * sizes.abs()).sum())
        return SiteHealth(
            layer=layer,
            site=site,
            channels=len(rates),
            rate=spikes / int(totals.sum()),
            dead_fraction=float((rates < DEAD_RATE).double().mean()),
            saturated_fraction=float((rates == 1).double().mean()),
            silent_channel_fraction=float((rates == 0).double().mean()),
            sign_balance=(positive - negative) / spikes if spikes else None,
            entropy_bits=float(entropy_bits(self._values, corrected=False).mean()),
            events_per_activation=events / int(totals.sum()),
            flicker=float((self._changes.double() / self._pairs).mean()) if self._pairs else None,
            rate_histogram=tuple(_histogram(rates).tolist()),
        )


def _histogram(rates: Float[Tensor, " width"]) -> Int64[Tensor, " bins"]:
    """Channels in equal bins of their rates; the last one holds 1."""
    return torch.bincount((rates * RATE_BINS).long().clamp(max=RATE_BINS - 1), minlength=RATE_BINS)
