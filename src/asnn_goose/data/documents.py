"""What a document is: how a text divides into documents, and documents that stay on the disk."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import datasets
import pyarrow

from asnn_goose.errors import DataError

DocumentUnit = Literal["line", "paragraph", "file"]
"""What counts as one document of a text."""

READ_ROWS = 1_000
"""Rows of an Arrow table that are turned into strings at a time."""

BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


def divide_text(text: str, unit: DocumentUnit | None) -> list[str]:
    """The documents of a text: its non-blank lines, its paragraphs between blank lines, or the text itself.

    None means the whole text, as `file` does.
    """
    match unit:
        case "line":
            return [line for line in text.split("\n") if line.strip()]
        case "paragraph":
            blocks = (block.strip("\n") for block in BLANK_LINES.split(text))
            return [block for block in blocks if block.strip()]
        case _:
            return [text]


def joined_rows(texts: Sequence[str], size: int) -> list[str]:
    """Each `size` consecutive rows as one text; a row that does not end its line is ended with a line break."""
    if size == 1:
        return list(texts)
    ended = [text if text.endswith("\n") or not text else text + "\n" for text in texts]
    return ["".join(ended[start : start + size]) for start in range(0, len(ended), size)]


def document_separator(documents: Sequence[str], unit: DocumentUnit | None) -> str:
    """What joins documents into one text again: a line break, a blank line, or nothing.

    Nothing, where the documents are whole rows or files that end their own last line.
    """
    if unit == "line":
        return "\n"
    first = next((document for document in documents if document.strip()), "")
    return "" if unit != "paragraph" and first.endswith("\n") else "\n\n"


@dataclass(frozen=True, eq=False)
class ArrowDocuments(Sequence[str]):
    """Documents in a memory-mapped table of one text column, read from the disk as they are asked for."""

    rows: datasets.Dataset
    """The table."""

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        """The document at a place, or those of a slice."""
        found: str | list[str] = self.rows[place][self.rows.column_names[0]]
        return found

    def __iter__(self) -> Iterator[str]:
        """The documents in order, read by the thousand."""
        for start in range(0, len(self), READ_ROWS):
            yield from self[start : start + READ_ROWS]


def choose_documents(documents: Sequence[str], places: Sequence[int], added: Sequence[str]) -> Sequence[str]:
    """The documents at the given places, then the added ones; what is on the disk stays there."""
    if not isinstance(documents, ArrowDocuments):
        return [*(documents[place] for place in places), *added]
    chosen = documents.rows.select(places)
    if added:
        features = chosen.features
        column = {chosen.column_names[0]: list(added)}
        chosen = datasets.concatenate_datasets([chosen, datasets.Dataset.from_dict(column, features=features)])
    return ArrowDocuments(chosen)


def check_text_column(schema: pyarrow.Schema, place: str, text_field: str) -> None:
    """Refuse a table that has no column of strings under the given name.

    Raises:
        DataError: `place` has no such column, or one of another type.
    """
    if text_field not in schema.names:
        columns = ", ".join(map(repr, schema.names)) or "none"
        raise DataError(f"{place} has no column {text_field!r}, its columns are {columns}; set data.text_field")
    kind = schema.field(text_field).type
    values = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not (pyarrow.types.is_string(values) or pyarrow.types.is_large_string(values)):
        raise DataError(f"{place} has {kind} in its column {text_field!r}, not strings; set data.text_field")
