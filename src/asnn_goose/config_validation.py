"""How spikes are validated: how much is looked at, with which estimators, and what has to hold."""

from typing import Annotated

from pydantic import Field

from asnn_goose.config_text import Section

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class SoundThresholds(Section):
    """What the sound verdict asks of a student; the reasons stand in docs/guide/validation.md."""

    null_p: float = Field(default=0.01, gt=0.0, lt=1.0)
    """Largest share of block permutations that may carry as much information as the spikes do."""
    untrained_effect: float = Field(default=0.2, ge=0.0)
    """Least lead over the untrained student, as a share of what the untrained student leaves to be known."""
    kept_share: Share = 0.8
    """Least share of the pre-activations' information that spikes keep."""
    causal_ratio: float = Field(default=1.05, ge=1.0)
    """Perplexity over the untouched student's that at least one replacement of a site's spikes must reach."""


class RecordedGates(Section):
    """The gates of the recorded validator (v15)."""

    dead_fraction: Share = 0.05
    saturated_fraction: Share = 0.10
    mutual_information_bits: float = 0.1
    cka: float = 0.3
    firing_rate: tuple[Share, Share] = Field(default=(0.2, 0.6), strict=False)


class ValidationOptions(Section):
    """What a validation looks at; equal options on equal text give equal figures."""

    seed: int = Field(default=0, ge=0)
    """Of permutations, controls and the untrained student."""
    window: int = Field(default=256, ge=8)
    """Tokens of a row; rows are what permutations move."""
    calibration_rows: int = Field(default=16, ge=2)
    """First rows, which give the principal components and the borders of bins and count for nothing else."""
    probe_tokens: int = Field(default=12_288, ge=1)
    """Tokens behind them on whose first half probes are fitted and on whose second half these are judged, at least 4
    rows; other students' information is of the same. Health, information and its null take the whole text."""
    similarity_tokens: int = Field(default=4_096, ge=1)
    """Tokens on which insides are compared by CKA, at least 4 rows, behind those that probes are fitted to where there
    are so many. It is debiased: more are only more precise, and every block is compared with every state of the
    teacher."""
    components: int = Field(default=4, ge=1, le=64)
    """Principal components of the teacher's hidden state that spikes are compared with."""
    bins: int = Field(default=8, ge=2, le=64)
    """Bins of equal mass for real numbers."""
    channels: int = Field(default=32, ge=1)
    """Channels of each site, evenly spaced, whose information is estimated one by one."""
    permutations: int = Field(default=199, ge=19)
    """Permutations of whole rows under which there is nothing to know."""
    permuted_rows: int = Field(default=16, ge=4)
    """Neighbouring rows among which a permutation moves them, so that memory does not grow with the text."""
    greatest_lag: int = Field(default=2, ge=1, le=16)
    """Tokens up to which spikes are shifted to and fro to see which of the teacher's positions they know most of."""
    neighbors: int = Field(default=3, ge=1)
    """Neighbours of the cross-check by distances (Ross 2014)."""
    neighbor_tokens: int = Field(default=1000, ge=100)
    """Tokens that it looks at."""
    causal_tokens: int = Field(default=4096, ge=256)
    """Tokens of text on which spikes are replaced."""
    rows_per_batch: int | None = Field(default=None, ge=1)
    """Rows of a forward pass; figures do not depend on it. Null takes as many as a device works on best and has room
    for."""
    gates: RecordedGates = RecordedGates()
    """What the recorded verdict asks for."""
    sound: SoundThresholds = SoundThresholds()
    """What the sound verdict asks for."""
