"""The recorded validator's estimators (v15), kept so that what they say of spikes can stand beside what is so.

They judge nothing here. Spikes that know all there is to know get about 0.04 bits and a CKA of 0.03 from them, and fail
both recorded gates, so that what was recorded (0.0435 bits, 0.0196) says nothing against the spikes it was measured on.
Each docstring says why.
"""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asnn_goose.evaluation.observation import Observation
from asnn_goose.objectives.features import linear_cka
from asnn_goose.validation_verdicts import RecordedEstimates

COORDINATES = 8
"""Channels, each beside the teacher's coordinate of the same number."""
BINS = 32
"""Bins of equal width between a coordinate's least and largest value."""
INFORMATION_TOKENS, CKA_TOKENS = 10_000, 5_000
"""First tokens that each estimator looks at."""
DEAD_RATE = 1e-3
"""Spikes a token below which a channel is dead."""


def recorded_mutual_information(
    spikes: Float[Tensor, "tokens width"], hidden: Float[Tensor, "tokens teacher_width"], bins: int = BINS
) -> float:
    """Bits of a spike's sign about the teacher's coordinate of the same number, the mean over the first eight.

    What is wrong with it: coordinate j of one model and channel j of another have nothing to do with each other, unless
    a loss has matched them; bins from the least to the largest value leave all tokens in a few, since a massive
    activation takes the rest; the plug-in estimate is too large by 62 / (2 tokens ln 2) bits for 3 signs and 32 bins,
    which is not taken off; and there is nothing to compare it with.
    """
    count = min(COORDINATES, spikes.shape[1], hidden.shape[1])
    signs = spikes[:INFORMATION_TOKENS, :count].sign().long() + 1
    values = hidden[:INFORMATION_TOKENS, :count].double()
    least, most = values.amin(dim=0), values.amax(dim=0)
    width = ((most - least) / bins).clamp_min(torch.finfo(torch.float64).tiny)
    cells = ((values - least) / width).long().clamp(max=bins - 1) + bins * signs
    bits = [_plug_in_bits(torch.bincount(cells[:, place], minlength=3 * bins).view(3, bins)) for place in range(count)]
    return sum(bits) / count


def recorded_cka(spikes: Float[Tensor, "tokens width"], hidden: Float[Tensor, "tokens teacher_width"]) -> float:
    """Biased linear CKA of spikes with raw hidden states, every token counted.

    What is wrong with it: the norm of GPT-2's first token is some forty times the others', so that it is the
    teacher's only direction and all that is asked is whether spikes tell which token is first; and independent data
    get more than 0, the more the fewer tokens there are for a channel.
    """
    return float(linear_cka(spikes[:CKA_TOKENS].double(), hidden[:CKA_TOKENS].double()))


def recorded_estimates(batches: Iterable[Observation], layer_map: Mapping[int, int]) -> RecordedEstimates | None:
    """What `RecordedEvidence` finds in whole rows, in their order."""
    evidence = RecordedEvidence(layer_map)
    for batch in batches:
        evidence.add(batch)
    return evidence.estimates()


class RecordedEvidence:
    """The five recorded quantities of the given blocks.

    Information and CKA are means over blocks of the figures of k, of v and of their mean, beside the output of a block
    of the teacher. What is wrong with the rest: a channel counts as active where k or v spikes, which makes rates
    larger than either's; a threshold that follows the mean magnitude sets the rate by itself; and "saturated" asks for
    a spike at every single token.

    Args:
        layer_map: By block, the teacher's block, from 0 as in the record's map; -1 is what its first block is given.
    """

    def __init__(self, layer_map: Mapping[int, int]) -> None:
        self._layer_map = layer_map
        self._first: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._active: dict[int, Tensor] = {}
        self._tokens: dict[int, int] = {}

    def add(self, batch: Observation) -> None:
        """Take in whole rows; those beyond the first 10,000 tokens count for activity alone."""
        for block, taught in self._layer_map.items():
            if (block, "k") in batch.sites and (block, "v") in batch.sites:
                k, v = (batch.sites[block, site].spikes.flatten(0, 1) for site in ("k", "v"))
                self._add_block(block, k, v, batch.teacher_hidden[taught + 1].flatten(0, 1))

    def _add_block(
        self,
        block: int,
        k: Float[Tensor, "tokens width"],
        v: Float[Tensor, "tokens width"],
        hidden: Float[Tensor, "tokens teacher_width"],
    ) -> None:
        seen = self._tokens.get(block, 0)
        if seen < INFORMATION_TOKENS:
            self._first.setdefault(block, []).append((k, v, hidden))
        self._active[block] = self._active.get(block, 0) + _active(k, v).sum(dim=0)
        self._tokens[block] = seen + len(k)

    def estimates(self) -> RecordedEstimates | None:
        """Means over all blocks; None where none of them encodes both k and v."""
        if not self._tokens:
            return None
        bits, similar = [], []
        for parts in self._first.values():
            k, v, hidden = (torch.cat(part).float() for part in zip(*parts, strict=True))
            for spikes in (k, v, (k + v) / 2):
                bits.append(recorded_mutual_information(spikes, hidden))
                similar.append(recorded_cka(spikes, hidden))
        rates = torch.cat([active.double() / self._tokens[block] for block, active in self._active.items()])
        return RecordedEstimates(
            dead_fraction=float((rates < DEAD_RATE).double().mean()),
            saturated_fraction=float((rates == 1).double().mean()),
            mutual_information_bits=sum(bits) / len(bits),
            cka=sum(similar) / len(similar),
            firing_rate=float(rates.mean()),
        )


def _active(k: Float[Tensor, "tokens width"], v: Float[Tensor, "tokens width"]) -> Bool[Tensor, "tokens width"]:
    return (k != 0) | (v != 0)


def _plug_in_bits(counts: Tensor) -> float:
    joint = counts.double() / counts.sum()
    independent = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    met = joint > 0
    return float((joint[met] * (joint[met] / independent[met]).log2()).sum())
