"""Which documents ship: as many as fit, in an order that only the seed decides, and some of them held out.

Whole groups are held out, not documents: texts that begin with the same given words stand on one side of the split.
"""

import hashlib
import json
import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from pocket.cleaning import plain_words

HELD_OUT_PART = 0.04
SHINGLE_WORDS = 8
MOST_SHARED_FRACTION = 0.1
"""A training document with a larger part of its runs of `SHINGLE_WORDS` words in held-out documents is left out."""
HASH_FACTOR = np.int64(0x9E3779B97F4A7C15 - 2**64)
"""Odd, so that no word of a run is lost: the golden ratio's bits."""
SEARCHES = 6
TIGHT_FRACTION = 0.985
"""The search for the number of documents ends when they fill at least this part of the budget."""
GUESSED_COMPRESSION = 3.5


@dataclass(frozen=True)
class Document:
    """A cleaned text.

    Attributes:
        kind: What sort of text it is.
        group: The words it was given to begin with.
        text: The text, those words included.
    """

    kind: str
    group: str
    text: str


@dataclass(frozen=True)
class Selection:
    """Documents in their shipping order.

    Attributes:
        train: Documents to train on that ship.
        held_out: Documents held out that ship.
        corpus: All documents to train on, those that ship among them.
        near_duplicates: Number of documents left out because they share too much with held-out ones.
    """

    train: list[Document]
    held_out: list[Document]
    corpus: list[Document]
    near_duplicates: int


def select_documents(documents: Iterable[Document], seed: int, most_bytes: int) -> Selection:
    """The documents that ship, whatever the order of `documents`.

    Args:
        documents: All documents, without duplicates.
        seed: Decides which are held out and which ship.
        most_bytes: Largest size of both compressed files together.
    """
    ordered = sorted(documents, key=lambda document: _draw("order", seed, document.text))
    held_out = [document for document in ordered if _is_held_out(document, seed)]
    candidates = [document for document in ordered if not _is_held_out(document, seed)]
    shared = _shared_fractions(candidates, held_out)
    corpus = [document for document, part in zip(candidates, shared, strict=True) if part <= MOST_SHARED_FRACTION]
    count = _largest_count(corpus, held_out, most_bytes)
    return Selection(
        train=corpus[:count],
        held_out=held_out[: _held_out_count(count)],
        corpus=corpus,
        near_duplicates=len(candidates) - len(corpus),
    )


def _draw(purpose: str, seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{purpose} {seed} {text}".encode()).digest()


def _is_held_out(document: Document, seed: int) -> bool:
    return int.from_bytes(_draw("held out", seed, document.group)[:8]) < HELD_OUT_PART * 2**64


def _held_out_count(train_count: int) -> int:
    return max(1, round(train_count * HELD_OUT_PART / (1 - HELD_OUT_PART)))


def _shared_fractions(documents: Sequence[Document], others: Sequence[Document]) -> Float64[np.ndarray, " documents"]:
    """The part of each document's runs of `SHINGLE_WORDS` words that stand in one of the others."""
    numbers: dict[str, int] = {}
    runs, owners = _word_runs(documents, numbers)
    shared = np.isin(runs, _word_runs(others, numbers)[0])
    found, total = (np.bincount(owners, weights, len(documents)) for weights in (shared, None))
    return found / np.maximum(total, 1)


def _word_runs(
    documents: Sequence[Document], numbers: dict[str, int]
) -> tuple[Int64[np.ndarray, " runs"], Int64[np.ndarray, " runs"]]:
    """A fingerprint of each run of words, and the place of the document it stands in; new words are numbered."""
    ids = [[numbers.setdefault(word, len(numbers)) for word in plain_words(document.text)] for document in documents]
    lengths = np.array([len(words) for words in ids], dtype=np.int64)
    words = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=int(lengths.sum()))
    owners = np.repeat(np.arange(len(ids)), lengths)
    runs = np.zeros(max(0, len(words) - SHINGLE_WORDS + 1), dtype=np.int64)
    for place in range(SHINGLE_WORDS):
        # Multiplication wraps around, which is what makes it a hash.
        runs = runs * HASH_FACTOR + words[place : place + len(runs)]
    within = owners[: len(runs)] == owners[SHINGLE_WORDS - 1 :]
    return runs[within], owners[: len(runs)][within]


def _largest_count(corpus: Sequence[Document], held_out: Sequence[Document], most_bytes: int) -> int:
    """A number of training documents that fill the budget nearly, with their share of held-out ones."""
    lengths = sum(len(document.text) for document in corpus) / max(1, len(corpus))
    guess = round(most_bytes * GUESSED_COMPRESSION / max(1.0, lengths) * (1 - HELD_OUT_PART))
    count, fits = max(1, min(len(corpus), guess)), 0
    for _ in range(SEARCHES):
        size = len(compress(corpus[:count])) + len(compress(held_out[: _held_out_count(count)]))
        if size <= most_bytes:
            fits = max(fits, count)
            if count == len(corpus) or size >= TIGHT_FRACTION * most_bytes:
                break
        # Aimed a little below the budget, because the next size is a guess, too.
        count = max(1, min(len(corpus), int(count * most_bytes / size * (1 + TIGHT_FRACTION) / 2)))
    return fits


def compress(documents: Sequence[Document]) -> bytes:
    """The documents as compressed JSON lines: the same bytes for the same documents."""
    lines = (json.dumps({"kind": document.kind, "text": document.text}, ensure_ascii=True) for document in documents)
    content = "".join(f"{line}\n" for line in lines).encode("ascii")
    return lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=9)


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Write all fields of the documents as JSON lines."""
    with path.open("w", encoding="ascii") as file:
        file.writelines(json.dumps(document.__dict__) + "\n" for document in documents)


def read_documents(path: Path) -> list[Document]:
    """The documents that `write_documents` wrote."""
    with path.open(encoding="ascii") as file:
        return [Document(**json.loads(line)) for line in file]


def read_shipped(path: Path) -> list[str]:
    """The texts of a compressed file."""
    with lzma.open(path, "rt", encoding="ascii") as file:
        return [json.loads(line)["text"] for line in file]
