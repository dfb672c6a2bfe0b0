"""validation.json: what a validation of spikes measured, site by site, and what it says of them.

Equal validations are equal to the byte: figures have six digits, entries and keys an order of their own, and nothing
tells when, where or how fast they were measured. What was not measured is null.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from asnn_goose.config_validation import ValidationOptions
from asnn_goose.measurements import Count, Record, read_record
from asnn_goose.validation_verdicts import RecordedEstimates, RecordedVerdict, Rounded, SoundVerdict

SCHEMA_VERSION: Literal[1] = 1
RATE_BINS = 20
"""Bins of a histogram of channel rates, equally wide from 0 to 1."""

Compared = Literal["k", "v", "state", "block_output"]
"""Which of a student's insides CKA compares with its teacher's."""
TeacherLayer = Annotated[int, Field(ge=-1)]
"""Block of the teacher whose output is compared with, from 0; -1 is what its first block is given."""


def _by_key(entries: dict[Any, Any]) -> dict[Any, Any]:
    return dict(sorted(entries.items()))


def _ordered(*fields: str) -> AfterValidator:
    """Entries in the order of the given fields, whatever order they were measured in."""
    return AfterValidator(
        lambda entries: tuple(sorted(entries, key=lambda entry: tuple(getattr(entry, field) for field in fields)))
    )


Controls = Annotated[dict[str, Rounded], AfterValidator(_by_key)]
"""By control (`time_shift`, `sign_shuffle`, `rate_matched_noise`, `teacher_shuffle`): the same estimate without what
the control destroys."""


class TextFacts(Record):
    """The text that both models read."""

    description: str
    """Where it comes from, in a person's words."""
    tokens: Count
    """Tokens that were looked at, calibration included."""
    rows: Count
    """Whole rows of them."""
    window: Count
    """Tokens of a row."""
    token_sha256: str
    """SHA-256 of the token ids, row by row as little-endian 64-bit integers."""


class SiteHealth(Record):
    """How the channels of one site of one block spike; fractions are of channels, 0 to 1."""

    layer: Count
    """Index of the student's block, from 0."""
    site: str
    """Encoded tensor, such as `k`."""
    channels: Count
    """Channels that were looked at: all of them."""
    rate: Rounded
    """Fraction of spikes that are not 0."""
    dead_fraction: Rounded
    """Channels that spike at less than one token in a thousand."""
    saturated_fraction: Rounded
    """Channels that spike at every token."""
    silent_channel_fraction: Rounded
    """Channels that never spike."""
    sign_balance: Rounded
    """(positive - negative) / non-zero spikes, from -1 to 1."""
    entropy_bits: Rounded
    """Entropy of a channel's values, the mean over channels; its information cannot be more."""
    events_per_activation: Rounded
    """Mean |value|: unit spikes that one value expands into."""
    flicker: Rounded
    """Share of neighbouring tokens between which a channel's value changes, the mean over channels."""
    rate_histogram: tuple[Count, ...] = Field(strict=False, min_length=RATE_BINS, max_length=RATE_BINS)
    """Channels by their rate, in 20 equal bins from 0 to 1."""


class NullInformation(Record):
    """The same estimate where there is nothing to know: whole rows of spikes beside other rows of the teacher."""

    mean_bits: Rounded = None
    """Its mean over permutations, which is the estimator's bias."""
    deviation_bits: Rounded = None
    """Its standard deviation."""
    z: Rounded = None
    """(spikes' bits - mean) / deviation."""
    p: Rounded = None
    """(1 + permutations that reach the spikes' bits) / (1 + permutations), so never 0."""
    permutations: Count = 0
    """How many there were."""


class SiteInformation(Record):
    """What single channels of one site tell of the teacher's hidden state, as binned mutual information."""

    layer: Count
    """Index of the student's block."""
    site: str
    """Encoded tensor."""
    teacher_layer: TeacherLayer
    """Block of the teacher whose output it is compared with."""
    spikes_bits: Rounded = None
    """Of a channel's spikes about the principal component it tells most of; the mean over channels."""
    preactivation_bits: Rounded = None
    """The same of what the spikes were made of, in bins of equal mass."""
    kept_share: Rounded = None
    """The first over the second."""
    own_preactivation_bits: Rounded = None
    """Of a channel's spikes about its own pre-activation's bin: what the threshold lets through at all."""
    null: NullInformation = NullInformation()
    lag_bits: Annotated[dict[int, Rounded], AfterValidator(_by_key)] = Field(default_factory=dict)
    """By lag: bits of token t's spikes about the teacher at token t - lag, so that spikes one token late peak at 1."""
    best_lag: int | None = None
    """Where they are most."""
    neighbor_bits: Rounded = None
    """Cross-check without bins (Ross 2014), of the same channels about the same components."""
    controls: Controls = Field(default_factory=dict)
    untrained_bits: Rounded = None
    """Of the untrained student's spikes, by the same estimate on the leading `probe_tokens` alone, which leave more of
    its bias."""
    dense_twin_bits: Rounded = None
    """Of the twin that was trained without spikes, its activations in bins; null where there is none."""


class SiteProbe(Record):
    """What all channels of one site together tell of the teacher, as bits of a probe on rows it was not fitted to.

    Lower bounds of mutual information (Barber and Agakov 2003): target entropy less the probe's held-out cross-entropy,
    which comes out below 0 where a probe learned what does not hold elsewhere.
    """

    layer: Count
    """Index of the student's block."""
    site: str
    """Encoded tensor."""
    teacher_layer: TeacherLayer
    """Block of the teacher."""
    spikes_bits: Rounded = None
    """From the spikes."""
    preactivation_bits: Rounded = None
    """From what they were made of."""
    kept_share: Rounded = None
    """The first over the second."""
    target_entropy_bits: Rounded = None
    """Entropy of what the probe predicts: all there is to know."""
    untrained_bits: Rounded = None
    """From the untrained student's spikes."""
    dense_twin_bits: Rounded = None
    """From the dense twin's activations; null where there is none."""
    controls: Controls = Field(default_factory=dict)


class MatchedSimilarity(Record):
    """Debiased linear CKA of a student's inside with the teacher's hidden state that it stands for."""

    layer: Count
    """Index of the student's block."""
    teacher_layer: TeacherLayer
    """Block of the teacher."""
    what: Compared
    """Which of the block's insides; k and v are its spikes."""
    cka: Rounded = None
    """1 is the same up to rotation and scale, 0 what unrelated states have on average."""
    controls: Controls = Field(default_factory=dict)
    untrained_cka: Rounded = None
    """Of the untrained student."""
    dense_twin_cka: Rounded = None
    """Of the dense twin; null where there is none."""


class Representation(Record):
    """How alike the geometries of student and teacher are."""

    block_outputs: tuple[Annotated[tuple[Rounded, ...], Field(strict=False)], ...] = Field(default=(), strict=False)
    """Debiased CKA of each block's output (rows) with what the teacher's first block is given, and what each of its
    blocks gives (columns)."""
    matched: Annotated[tuple[MatchedSimilarity, ...], _ordered("layer", "what")] = Field(default=(), strict=False)


class Replacement(Record):
    """The student's perplexity with one site's spikes replaced in every block."""

    site: str
    """Encoded tensor, or `all`."""
    replacement: str
    """What stands in place of its spikes: `preactivations`, or what destroys them, such as `zeroed`."""
    perplexity: Rounded = None
    """On the text of the untouched student's."""
    ratio: Rounded = None
    """That perplexity over the untouched student's."""


class CausalUse(Record):
    """What the student's predictions lose with its spikes."""

    tokens: Count = 0
    """Tokens of text it was measured on."""
    perplexity: Rounded = None
    """Of the untouched student."""
    replacements: Annotated[tuple[Replacement, ...], _ordered("site", "replacement")] = Field(default=(), strict=False)


class ValidationResults(Record):
    """A whole validation.json."""

    schema_version: Literal[1] = SCHEMA_VERSION
    """Changes when a key changes its meaning or place."""
    model: str
    """The student: its run folder's or directory's name, or the kind of synthetic one."""
    teacher: str
    """Hub id, file or recipe name of the teacher."""
    text: TextFacts
    options: ValidationOptions = ValidationOptions()
    """Everything that was chosen, thresholds included."""
    layer_map: Annotated[dict[int, int], AfterValidator(_by_key)]
    """By the student's block, the teacher's block whose output its own stands for; other blocks are not compared."""
    health: Annotated[tuple[SiteHealth, ...], _ordered("layer", "site")] = Field(default=(), strict=False)
    information: Annotated[tuple[SiteInformation, ...], _ordered("layer", "site")] = Field(default=(), strict=False)
    probes: Annotated[tuple[SiteProbe, ...], _ordered("layer", "site")] = Field(default=(), strict=False)
    representation: Representation = Representation()
    causal: CausalUse = CausalUse()
    recorded_estimates: RecordedEstimates | None = None
    """What the recorded estimators make of the same spikes; null where they were not computed."""
    recorded_verdict: RecordedVerdict
    sound_verdict: SoundVerdict

    def to_json(self) -> str:
        """The text of validation.json."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = "validation.json") -> "ValidationResults":
        """The validation in a JSON text.

        Raises:
            RunFolderError: The text is no JSON, has another schema version, or lacks or adds a key.
        """
        return read_record(cls, SCHEMA_VERSION, text, source, "asnn-goose validate")
