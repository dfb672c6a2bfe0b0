"""Documents from local .txt, .jsonl and .parquet files, checked before any library reads them.

What is wrong with a file is said here in one line; the readers underneath name neither the line nor the
byte. Large files pass row by row into a memory-mapped table in the cache.
"""

import codecs
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet

from asnn_goose.data.cache import atomic_file, cache_directory
from asnn_goose.data.documents import (
    READ_ROWS,
    ArrowDocuments,
    DocumentUnit,
    check_text_column,
    divide_text,
)
from asnn_goose.errors import DataError

SUFFIXES = (".txt", ".jsonl", ".parquet")
EXPECTED = "a .txt, .jsonl or .parquet file, or a folder of these"
IN_MEMORY_BYTES = 32 * 2**20
"""Largest total size of .jsonl and .parquet files whose documents are kept in memory."""
TABLE_FORMAT = 1
"""Part of a cached table's identity; raised when the same files would give other documents."""


def local_documents(path: Path, text_field: str, unit: DocumentUnit | None) -> Sequence[str]:
    """The documents of a file, or of every readable file in a folder and its subfolders, in sorted order.

    A .txt file is divided into `unit`, by default the whole file; a row of the others is a document, which
    `line` and `paragraph` divide further. Line ends are read as line feeds. Hidden files are skipped.

    Raises:
        DataError: There is no such file, or one cannot be read, is not what its name says, or has no text.
        MachineError: The cache cannot be written, for files too large for memory.
    """
    files = _text_files(path.expanduser())
    statuses = {file: _checked_status(file) for file in files}
    table_bytes = sum(status.st_size for file, status in statuses.items() if file.suffix.lower() != ".txt")
    if table_bytes <= IN_MEMORY_BYTES:
        return [document for file in files for document in _file_documents(file, text_field, unit)]
    identity = [(str(file), status.st_size, status.st_mtime_ns) for file, status in statuses.items()]
    key = hashlib.sha256(json.dumps([TABLE_FORMAT, text_field, unit, identity]).encode()).hexdigest()
    table = cache_directory() / "datasets" / f"{key}.arrow"
    if not table.exists():
        _write_table(table, (document for file in files for document in _file_documents(file, text_field, unit)))
    return ArrowDocuments(datasets.Dataset.from_file(str(table)))


def _write_table(table: Path, documents: Iterable[str]) -> None:
    schema = pyarrow.schema({"text": pyarrow.large_string()})
    remaining = iter(documents)
    with atomic_file(table) as temporary, temporary.open("wb") as file, pyarrow.ipc.new_stream(file, schema) as stream:
        while batch := list(islice(remaining, READ_ROWS)):
            stream.write_batch(pyarrow.record_batch({"text": batch}, schema=schema))


def _text_files(path: Path) -> list[Path]:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        if is_folder:
            # The walk below passes over a folder that it may not read.
            os.listdir(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; give {EXPECTED}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give {EXPECTED}") from error
    if not is_folder:
        return [path.absolute()]
    visible = [
        file.absolute()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    files = [file for file in visible if file.suffix.lower() in SUFFIXES]
    if not files:
        counts = Counter(file.suffix or "no suffix" for file in visible)
        found = ", ".join(f"{count} of {suffix}" for suffix, count in counts.most_common(8)) or "no files"
        raise DataError(f"the folder {path} holds no .txt, .jsonl or .parquet file; found: {found}")
    return files


def _checked_status(file: Path) -> os.stat_result:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{file} is not a regular file; give {EXPECTED}")
    if file.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{file} ends in {file.suffix or 'no suffix'!r}; give {EXPECTED}, unpacked and renamed if need be"
        )
    if status.st_size == 0:
        raise DataError(f"{file} is empty; give a file with text")
    return status


def _file_documents(file: Path, text_field: str, unit: DocumentUnit | None) -> Iterator[str]:
    readers = {".txt": _whole_text, ".jsonl": _json_texts, ".parquet": _parquet_texts}
    has_text = False
    try:
        for text in readers[file.suffix.lower()](file, text_field):
            has_text = has_text or bool(text.strip())
            yield from divide_text(text, unit)
    except PermissionError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); allow reading it or give another file") from error
    if not has_text:
        raise DataError(f"{file} holds only white space; give a file with text")


def _whole_text(file: Path, text_field: str) -> Iterator[str]:
    yield _decode(file.read_bytes(), file, 0)


def _decode(content: bytes, file: Path, offset: int) -> str:
    """UTF-8 text with line feeds; `offset` is the place of the content in the file, in bytes."""
    if offset == 0 and content.startswith(codecs.BOM_UTF8):
        content, offset = content.removeprefix(codecs.BOM_UTF8), len(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise DataError(
            f"{file} is not UTF-8 text: byte {offset + error.start} is 0x{byte:02x}; convert it to UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{file} is binary: byte {offset + content.index(0)} is zero; give a file of text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _json_texts(file: Path, text_field: str) -> Iterator[str]:
    offset = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            content = _decode(line, file, offset)
            offset += len(line)
            if content.strip():
                yield _json_text(content, f"{file}, line {number}", text_field)


def _json_text(line: str, place: str, text_field: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{place}, is not JSON ({error.msg} at column {error.colno}); write one object a line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{place}, is a JSON {type(row).__name__}, not an object; write {{{json.dumps(text_field)}: ...}}"
        )
    if text_field not in row:
        keys = ", ".join(map(repr, row)) or "none"
        raise DataError(
            f"{place}, has no {text_field!r}, its keys are {keys}; set data.text_field to the one with the text"
        )
    text = row[text_field]
    if not isinstance(text, str):
        keys = ", ".join(map(repr, row))
        raise DataError(f"{place}: {text_field!r} is {json.dumps(text)[:40]}, not a string; its keys are {keys}")
    try:
        text.encode()
    # An escape can write half of a surrogate pair, which no tokenizer takes.
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: {text_field!r} holds half of a surrogate pair, which is not text") from error
    return text


def _parquet_texts(file: Path, text_field: str) -> Iterator[str]:
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            check_text_column(table.schema_arrow, str(file), text_field)
            batches = table.iter_batches(batch_size=READ_ROWS, columns=[text_field])
            texts = (text for batch in batches for text in batch.column(0).to_pylist())
            for row, text in enumerate(texts, start=1):
                if text is None:
                    raise DataError(f"{file}, row {row}, is null in {text_field!r}; leave such rows out")
                yield text
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file} is not a readable Parquet file ({reason}); write it again") from error
