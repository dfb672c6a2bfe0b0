"""What text a run reads and how it is cut: sources, training rows and evaluation protocols."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

BLOCK_ROWS = 1_000
"""Rows over which a mixture keeps its shares exactly."""

NAME_WAY, PATH_WAY = "`name` (a hub data set, `pydoc` or `pocket`)", "`path` (a file or folder)"


class Section(BaseModel):
    """A part of a recipe: frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class PackedRows(Section):
    """Documents joined by the end-of-text token and cut into rows without padding."""

    kind: Literal["packed"] = "packed"


class RecordedRows(Section):
    """The recorded notebooks' rows: lines tokenized alone, no end-of-text token, half-overlapping windows."""

    kind: Literal["recorded"] = "recorded"
    max_line_tokens: int = Field(default=512, ge=1)
    """Tokens after which a line is cut."""


Rows = Annotated[PackedRows | RecordedRows, Field(discriminator="kind")]


class TextSource(Section):
    """What every text source has."""

    documents: Literal["line", "paragraph", "file"] | None = None
    """What counts as one document of a text; null is a whole .txt file, and one row of a data set."""
    rows: Rows = PackedRows()
    """How tokens become training rows."""
    held_out_fraction: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Share of the text kept for evaluation where the source has no evaluation split of its own."""


class HubText(TextSource):
    """A data set of the Hugging Face hub, by name."""

    name: str
    """Hub id, such as `wikitext`."""
    subset: str | None = None
    """Name of the data set's configuration, such as `wikitext-2-raw-v1`."""
    train_split: str = "train"
    """Split that is trained on."""
    evaluation_split: str | None = "validation"
    """Split that is evaluated on; null cuts `held_out_fraction` from the training split."""
    text_field: str = "text"
    """Column that holds the text."""
    streaming: bool = False
    """Read over the network without downloading the whole; needs `max_documents`."""
    max_documents: int | None = Field(default=None, ge=2)
    """Rows read from the training split; null reads all."""
    rows_per_document: int = Field(default=1, ge=1)
    """Consecutive rows that are one text, where a data set has a line in each row, as wikitext has."""

    @model_validator(mode="after")
    def _streaming_is_bounded(self) -> "HubText":
        if self.streaming and self.max_documents is None:
            raise ValueError("data.streaming=true needs data.max_documents, the number of documents to read")
        return self


class LocalText(TextSource):
    """Local text: a .txt, .jsonl or .parquet file, or a folder of these."""

    path: Path
    """The file or folder."""
    evaluation_path: Path | None = None
    """Text that is evaluated on; null cuts `held_out_fraction` from `path`."""
    text_field: str = "text"
    """Column or key that holds the text in .jsonl and .parquet files."""


class PydocText(TextSource):
    """The documentation of Python's own standard library, present on every machine."""

    name: Literal["pydoc"] = "pydoc"


class PocketText(TextSource):
    """The short stories and explanations that come with the package, which the `pocket` teacher learned from."""

    name: Literal["pocket"] = "pocket"


def stated_fields(value: Any) -> dict[str, Any]:
    """The fields of a mapping or a section; none where a recipe holds something else in its place."""
    if isinstance(value, dict):
        return value
    return value.__dict__ if isinstance(value, Section) else {}


def data_tag(value: Any) -> str | None:
    """Which data union member a mapping or model describes: by `source`, `path`, the built-in name, else the hub."""
    fields = stated_fields(value)
    if "source" in fields:
        return fields["source"] if isinstance(fields["source"], str) else None
    if "path" in fields:
        return "path"
    if "name" in fields:
        return fields["name"] if fields["name"] in ("pydoc", "pocket") else "name"
    return None


_PlainMembers = (
    Annotated[HubText, Tag("name")]
    | Annotated[LocalText, Tag("path")]
    | Annotated[PydocText, Tag("pydoc")]
    | Annotated[PocketText, Tag("pocket")]
)

PlainData = Annotated[
    _PlainMembers,
    Discriminator(
        data_tag,
        custom_error_type="data_source",
        custom_error_message=f"prompts of teacher_samples need {NAME_WAY} or {PATH_WAY}",
    ),
]
"""Text that somebody wrote, as documents."""


class TeacherSamples(Section):
    """Text that the teacher itself writes, generated once into the cache.

    A row starts with the first tokens of a row of another text, and the teacher goes on from there. Each token is
    drawn from the `candidates` likeliest, cut to `top_p`: with top_p=1 this is the teacher's own distribution but
    for what lies behind those candidates.
    """

    source: Literal["teacher_samples"] = "teacher_samples"
    prompts: PlainData
    """Text whose training documents give the prompts, and whose held-out documents are evaluated on."""
    tokens: int = Field(default=4_000_000, ge=4)
    """Tokens of the whole text, prompts included."""
    length: int = Field(default=256, ge=2)
    """Tokens of a prompt and its continuation together; the training window, best."""
    prompt_tokens: int = Field(default=8, ge=1)
    """Tokens of a prompt."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Divides the teacher's logits."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """A token is drawn from the smallest set of likeliest tokens with at least this probability."""
    candidates: int = Field(default=512, ge=1)
    """Likeliest tokens that can be drawn at all."""
    rows_per_batch: int | None = Field(default=None, ge=1)
    """Texts that are written at a time; null is 1024 on a GPU and 32 on a CPU. Another number gives other texts."""

    @model_validator(mode="after")
    def _prompts_leave_room(self) -> "TeacherSamples":
        if self.prompt_tokens >= self.length:
            raise ValueError(
                f"prompt_tokens of teacher_samples must be less than their length, got {self.prompt_tokens} of "
                f"{self.length}"
            )
        return self


PartText = Annotated[
    _PlainMembers | Annotated[TeacherSamples, Tag("teacher_samples")],
    Discriminator(
        data_tag,
        custom_error_type="data_source",
        custom_error_message=f"the text of a mixture's part needs {NAME_WAY}, {PATH_WAY} or "
        "`source` (`teacher_samples`); parts of a mixture inside a mixture go into the outer one, with their weights",
    ),
]


class MixturePart(Section):
    """One text of a mixture."""

    weight: float = Field(gt=0.0)
    """Share of the rows, relative to the other parts' weights."""
    text: PartText
    """Any source but a mixture."""


class MixedText(Section):
    """Several texts, each tokenized and cut into rows on its own, whose rows come by weight."""

    source: Literal["mixture"] = "mixture"
    parts: tuple[MixturePart, ...] = Field(strict=False)
    """The texts with their weights."""
    held_out_from: int = Field(default=0, ge=0)
    """Part whose held-out text is evaluated on, counted from 0."""

    @model_validator(mode="after")
    def _parts_have_a_share(self) -> "MixedText":
        if not self.parts:
            raise ValueError("data.parts is empty; a mixture needs at least one part, with `weight` and `text`")
        if self.held_out_from >= len(self.parts):
            raise ValueError(
                f"data.held_out_from={self.held_out_from} is no part of the mixture; give 0 to {len(self.parts) - 1}"
            )
        total = sum(part.weight for part in self.parts)
        least = min(part.weight for part in self.parts)
        if least < total / BLOCK_ROWS:
            raise ValueError(
                f"data.parts has a weight of {least:g} of {total:g}; give each part at least 1/{BLOCK_ROWS} of the sum"
            )
        return self


Data = Annotated[
    _PlainMembers | Annotated[MixedText, Tag("mixture")] | Annotated[TeacherSamples, Tag("teacher_samples")],
    Discriminator(
        data_tag,
        custom_error_type="data_source",
        custom_error_message=f"data needs {NAME_WAY}, {PATH_WAY} or `source` (`mixture` or `teacher_samples`)",
    ),
]


class StandardProtocol(Section):
    """The text as one string, one tokenizer call, non-overlapping windows, first token of each not scored."""

    kind: Literal["standard"] = "standard"
    window: int = Field(default=256, ge=2)
    """Tokens a window holds."""
    tokens: int | None = Field(default=None, ge=2)
    """Leading tokens of the text that are evaluated; null takes all."""


class RecordedProtocol(Section):
    """The recorded notebooks' windows: cut lines without an end-of-text token, stride of half a window.

    Unlike the notebooks', the perplexity is not capped at exp(10).
    """

    kind: Literal["recorded"] = "recorded"
    window: int = Field(default=256, ge=2)
    """Tokens a window holds."""
    max_line_tokens: int = Field(default=512, ge=1)
    """Tokens after which a line is cut."""
    tokens: int | None = Field(default=None, ge=2)
    """Leading tokens of the text that are evaluated; null takes all."""


Protocol = Annotated[StandardProtocol | RecordedProtocol, Field(discriminator="kind")]
