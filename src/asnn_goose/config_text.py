"""What text a run reads and how it is cut: sources, training rows and evaluation protocols."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator


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
    """Documents read from the training split; null reads all."""

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
    """Which data union member a mapping or model describes: by `path`, by the built-in name, else the hub."""
    fields = stated_fields(value)
    if "path" in fields:
        return "path"
    if "name" in fields:
        return fields["name"] if fields["name"] in ("pydoc", "pocket") else "name"
    return None


Data = Annotated[
    Annotated[HubText, Tag("name")]
    | Annotated[LocalText, Tag("path")]
    | Annotated[PydocText, Tag("pydoc")]
    | Annotated[PocketText, Tag("pocket")],
    Discriminator(
        data_tag,
        custom_error_type="data_source",
        custom_error_message="data needs `name` (a hub data set, `pydoc` or `pocket`) or `path` (a file or folder)",
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
