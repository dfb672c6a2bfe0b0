"""Documents from a data set of the Hugging Face hub, or from the copy of it that an earlier run left."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from asnn_goose.config_text import HubText
from asnn_goose.data.cache import writing_to
from asnn_goose.data.documents import (
    READ_ROWS,
    ArrowDocuments,
    DocumentUnit,
    check_text_column,
    divide_text,
    joined_rows,
)
from asnn_goose.data.hub import hub_answers, quiet_hub_logs
from asnn_goose.errors import DataError, GooseError, HubUnreachableError


def hub_documents(data: HubText) -> tuple[Sequence[str], Sequence[str] | None]:
    """The documents of the training split, and those of the evaluation split if the recipe names one.

    `max_documents` bounds the training split; when streaming, the evaluation split too, at
    `held_out_fraction` times as many. Where the hub does not answer, its local cache is read.

    Raises:
        DataError: The data set has no such name, subset, split or column of text.
        HubUnreachableError: The hub does not answer and the cache does not hold the data set.
        MachineError: The disk is full.
    """
    if Path(data.name).exists():
        raise DataError(
            f"data.name={data.name} is a file or folder here, which would stand before the hub's data set; "
            f"give data.path={data.name} to read it, or start from another folder"
        )
    evaluation_rows = max(1, round(data.max_documents * data.held_out_fraction)) if data.max_documents else None
    reachable = not datasets.config.HF_HUB_OFFLINE and hub_answers()
    with quiet_hub_logs(), _offline_unless(reachable):
        train = _load_split(data, data.train_split, data.max_documents, reachable)
        if data.evaluation_split is None:
            return train, None
        limit = evaluation_rows if data.streaming else None
        return train, _load_split(data, data.evaluation_split, limit, reachable)


@contextmanager
def _offline_unless(reachable: bool) -> Iterator[None]:
    # The library looks into its cache only after minutes of retries, unless it believes to be offline.
    offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline or not reachable
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def _load_split(data: HubText, split: str, limit: int | None, reachable: bool) -> Sequence[str]:
    asked = f"{data.name!r}" + (f", subset {data.subset!r}" if data.subset else "") + f", split {split!r}"
    try:
        with writing_to(datasets.config.HF_DATASETS_CACHE):
            rows = datasets.load_dataset(data.name, data.subset, split=split, streaming=data.streaming)
            if data.streaming:
                return _streamed_documents(rows.take(limit), data, asked)
            return _table_documents(rows, data, limit, asked)
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError, OSError) as error:
        raise _explained(error, data.name, asked, reachable) from error


def _explained(error: Exception, name: str, asked: str, reachable: bool) -> GooseError:
    reason = " ".join(str(error).split())[:300]
    if not reachable and isinstance(error, FileNotFoundError | ConnectionError):
        return HubUnreachableError(
            f"the Hugging Face hub does not answer and the data set {name!r} is not in the local cache; offline, give "
            "data.path=FILE with a .txt, .jsonl or .parquet file, data.name=pocket, or, with HF_HUB_OFFLINE=1, a data "
            "set that is in the local cache"
        )
    said_by_library = isinstance(error, datasets.exceptions.DatasetsError | FileNotFoundError)
    if isinstance(error, OSError) and not said_by_library:
        return HubUnreachableError(f"the Hugging Face hub did not deliver {asked} ({reason}); try again later")
    return DataError(
        f"the data set {asked}, cannot be read ({reason}); check data.name, data.subset, data.train_split and "
        "data.evaluation_split, which may be null"
    )


def _streamed_documents(rows: Iterable[dict[str, Any]], data: HubText, asked: str) -> list[str]:
    documents = []
    for number, row in enumerate(rows, start=1):
        if data.text_field not in row:
            columns = ", ".join(map(repr, row))
            raise DataError(
                f"the data set {asked}, has no column {data.text_field!r}, its columns are {columns}; "
                "set data.text_field"
            )
        text = row[data.text_field]
        if not isinstance(text, str):
            raise DataError(
                f"the data set {asked}, has {text!r:.40} in row {number} of {data.text_field!r}, not a string; "
                "set data.text_field or give another data set"
            )
        documents.append(text)
    return [
        part for text in joined_rows(documents, data.rows_per_document) for part in divide_text(text, data.documents)
    ]


def _table_documents(rows: datasets.Dataset, data: HubText, limit: int | None, asked: str) -> ArrowDocuments:
    check_text_column(rows.features.arrow_schema, f"the data set {asked},", data.text_field)
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    nulls = rows.data.column(data.text_field).null_count
    if nulls > 0:
        raise DataError(
            f"the data set {asked}, has {nulls} rows without text in {data.text_field!r}; save it without them and "
            "give data.path=FILE"
        )
    rows = rows.select_columns([data.text_field])
    if data.documents in ("line", "paragraph") or data.rows_per_document > 1:
        arguments = {"text_field": data.text_field, "unit": data.documents, "joined": data.rows_per_document}
        # A batch holds whole documents, so that none is cut at its end.
        batch = data.rows_per_document * max(1, READ_ROWS // data.rows_per_document)
        with _no_progress_bars():
            rows = rows.map(_divided_rows, batched=True, batch_size=batch, fn_kwargs=arguments)
    return ArrowDocuments(rows)


def _divided_rows(
    rows: Mapping[str, list[str]], text_field: str, unit: DocumentUnit | None, joined: int
) -> dict[str, list[str]]:
    texts = joined_rows(rows[text_field], joined)
    return {text_field: [document for text in texts for document in divide_text(text, unit)]}


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    hidden_before = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden_before:
            datasets.enable_progress_bars()
