"""Documents become one long row of token ids, kept in the cache and read from there memory-mapped."""

import hashlib
import io
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Integer
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from asnn_goose.config_text import PackedRows, RecordedRows
from asnn_goose.data.cache import atomic_directory, cache_directory
from asnn_goose.data.token_cache import read_cached_tokens, token_dtype, write_tokens
from asnn_goose.errors import DataError

PIECE_CHARACTERS = 1_000_000
"""Longest text that is given to the tokenizer as one piece."""
BATCH_TEXTS = 1_000
BATCH_CHARACTERS = 4_000_000
"""A call of the tokenizer gets no more than this many texts, and stops at the text that reaches this size."""
PROGRESS_AFTER_SECONDS = 2.0
"""Work that takes longer shows a progress bar."""
CACHE_FORMAT = 1
"""Part of the cache key; raised when the same documents would give other tokens."""

TextAfter = tuple[list[int], str]
"""A text to tokenize alone, and the token ids that stand before its own."""

LINE_BREAK_IN_PARAGRAPH = re.compile(r"(?<!\n)\n(?=\S)")


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Windows of `window` tokens, one every `stride` tokens; the last partial window is dropped."""

    tokens: Integer[np.ndarray, " tokens"]
    """The text as token ids; may be memory-mapped."""
    window: int
    """Tokens a row holds."""
    stride: int
    """Tokens between the starts of neighboring rows."""

    def __len__(self) -> int:
        """Number of rows; 0 if there are fewer tokens than one window."""
        return max(0, (len(self.tokens) - self.window) // self.stride + 1)

    def take(self, indices: Integer[np.ndarray, " rows"]) -> Int64[np.ndarray, "rows window"]:
        """The rows at `indices`, copied.

        Raises:
            IndexError: An index is not in [0, number of rows).
        """
        if len(indices) > 0 and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"row indices must be in [0, {len(self)}), got {indices.min()} to {indices.max()}")
        places = np.asarray(indices, dtype=np.int64)[:, None] * self.stride + np.arange(self.window)
        # rows window
        return np.asarray(self.tokens[places], dtype=np.int64)


def training_rows(tokens: Integer[np.ndarray, " tokens"], window: int, rows: PackedRows | RecordedRows) -> TokenRows:
    """Rows of `window` tokens: side by side when packed, half-overlapping when recorded.

    Raises:
        DataError: There are fewer than two rows.
    """
    stride = window if isinstance(rows, PackedRows) else max(1, window // 2)
    made = TokenRows(tokens=tokens, window=window, stride=stride)
    if len(made) < 2:
        raise DataError(
            f"the training text has {len(tokens)} tokens, and two rows of training.window={window} need "
            f"{window + stride}; give more text or a smaller training.window"
        )
    return made


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256, in hex, of what decides which tokens a text becomes.

    That is a fast tokenizer's serialized form, or a slow one's vocabulary and special tokens. Truncation
    and padding, which the last call may have left set, do not count.
    """
    if tokenizer.is_fast:
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        described.update(truncation=None, padding=None)
    else:
        described = {"vocabulary": tokenizer.get_vocab(), "special_tokens": tokenizer.special_tokens_map}
    return hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest()


def end_of_text_token(tokenizer: PreTrainedTokenizerBase, other_way: str = "") -> int:
    """The id of the token that ends a text.

    Raises:
        DataError: The tokenizer has none; `other_way` ends the line.
    """
    end: int | None = tokenizer.eos_token_id
    if end is None:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r} has no end-of-text token to put "
            f'between documents; set "eos_token" in its tokenizer_config.json to a token of its vocabulary{other_way}'
        )
    return end


def tokenize_text(text: str, tokenizer: PreTrainedTokenizerBase) -> Int64[np.ndarray, " tokens"]:
    """The tokens of a text read as one string: one call of the tokenizer, no special tokens."""
    return np.asarray(_token_ids([text], tokenizer)[0], dtype=np.int64)


def tokenize_lines(text: str, tokenizer: PreTrainedTokenizerBase, max_line_tokens: int) -> Int64[np.ndarray, " tokens"]:
    """The tokens of a text whose lines are tokenized alone, as the recorded notebooks did.

    Blank lines are dropped, every other line is tokenized with its line break, as the rows of the recorded
    data set have it, and cut after `max_line_tokens` tokens; no end-of-text token stands between lines.
    """
    lines = _token_pieces(_line_texts([text]), tokenizer, max_line_tokens)
    return np.fromiter((token for line in lines for token in line), dtype=np.int64)


def tokenize_documents(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, rows: PackedRows | RecordedRows
) -> Integer[np.ndarray, " tokens"]:
    """The tokens of all documents in order, memory-mapped from the cache, uint16 if the vocabulary fits.

    Packed: the end-of-text token stands between documents. Recorded: as `tokenize_lines`. Blank documents
    are left out. A packed document of more than 1,000,000 characters is cut at line breaks into pieces
    that are tokenized alone, so that they run in parallel and memory stays bounded; at such a cut the
    tokens can differ by one from those of the document in one piece.

    Raises:
        DataError: The documents hold no text, or the tokenizer has no end-of-text token to pack with.
        MachineError: The cache cannot be written.
    """
    if isinstance(rows, PackedRows):
        end_of_text_token(tokenizer, ", or data.rows.kind=recorded, which puts nothing there")
    key, characters = _cache_key(documents, tokenizer, rows)
    directory = cache_directory() / "tokens" / key
    tokens = read_cached_tokens(directory)
    if tokens is None:
        with atomic_directory(directory) as temporary:
            _write_documents(temporary, _shown_texts(documents, tokenizer, rows, characters), tokenizer, rows)
        tokens = read_cached_tokens(directory)
    assert tokens is not None, f"the tokens just written to {directory} cannot be read"
    return tokens


def _cache_key(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, rows: PackedRows | RecordedRows
) -> tuple[str, int]:
    """The key that these documents' tokens are cached under, and the documents' length in characters."""
    head = [CACHE_FORMAT, tokenizer_hash(tokenizer), tokenizer.eos_token_id, rows.model_dump(mode="json")]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    characters = 0
    for document in documents:
        content = document.encode()
        characters += len(document)
        # The length keeps apart two lists of documents whose joined text is the same.
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest(), characters


def _write_documents(
    directory: Path, texts: Iterable[TextAfter], tokenizer: PreTrainedTokenizerBase, rows: PackedRows | RecordedRows
) -> None:
    limit = rows.max_line_tokens if isinstance(rows, RecordedRows) else None
    dtype = token_dtype(max(tokenizer.get_vocab().values()))
    if write_tokens(directory, _token_pieces(texts, tokenizer, limit), dtype) == 0:
        raise DataError("the documents hold no text to make tokens of; give a text that is not blank")


def _token_pieces(
    texts: Iterable[TextAfter], tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> Iterator[list[int]]:
    """The tokens of each text, cut after `limit`, behind those that stand before it."""
    for batch in _batches(texts):
        ids = _token_ids([text for _, text in batch], tokenizer)
        for (before, _), own in zip(batch, ids, strict=True):
            yield before + own[:limit]


def _token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    # verbose=False keeps it from warning of texts longer than a model's context.
    encoded = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _batches(texts: Iterable[TextAfter]) -> Iterator[list[TextAfter]]:
    batch: list[TextAfter] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text[1])
        if len(batch) == BATCH_TEXTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _shown_texts(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, rows: PackedRows | RecordedRows, characters: int
) -> Iterator[TextAfter]:
    """The texts to tokenize, with a progress bar on a terminal once they have taken a while."""
    packed = isinstance(rows, PackedRows)
    texts = _packed_texts(documents, tokenizer.eos_token_id) if packed else _line_texts(documents)
    progress = Progress(console=Console(stderr=True), transient=True)
    task = progress.add_task(f"tokenizing {len(documents):,} documents", total=characters)
    started = time.monotonic()
    try:
        for text in texts:
            yield text
            progress.advance(task, len(text[1]))
            overdue = time.monotonic() - started > PROGRESS_AFTER_SECONDS
            if overdue and progress.console.is_terminal and not progress.live.is_started:
                progress.start()
    finally:
        if progress.live.is_started:
            progress.stop()


def _packed_texts(documents: Iterable[str], end_of_text: int) -> Iterator[TextAfter]:
    before: list[int] = []
    for document in documents:
        if document.strip():
            for piece in _short_pieces(document):
                yield before, piece
                before = []
            before = [end_of_text]


def _line_texts(documents: Iterable[str]) -> Iterator[TextAfter]:
    for document in documents:
        # newline="\n" keeps each line as it stands, its break included, and splits at no other sign.
        yield from (([], line) for line in io.StringIO(document, newline="\n") if line.strip())


def _short_pieces(document: str) -> Iterator[str]:
    start = 0
    while len(document) - start > PIECE_CHARACTERS:
        end = _cut_place(document, start + PIECE_CHARACTERS // 2, start + PIECE_CHARACTERS)
        yield document[start:end]
        start = end
    yield document[start:]


def _cut_place(document: str, earliest: int, latest: int) -> int:
    """Behind the last line break between two places, one within a paragraph if there is any, else before a space."""
    # Behind a line break that is no part of a blank line, byte-level tokenizers split a text of their own accord.
    within = [match.end() for match in LINE_BREAK_IN_PARAGRAPH.finditer(document, earliest, latest)]
    if within:
        return within[-1]
    line_break = document.rfind("\n", earliest, latest)
    if line_break >= 0:
        return line_break + 1
    space = document.rfind(" ", earliest, latest)
    return space if space >= 0 else latest
