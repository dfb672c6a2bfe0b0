"""Which documents ship: as many as fit, in an order that only the seed decides, and some of them held out.

Whole groups are held out, not documents: texts that begin with the same given words stand on one side of the split.
"""

import hashlib
import json
import lzma
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocket.cleaning import plain_words

HELD_OUT_PART = 0.04
SHINGLE_WORDS = 8
MOST_SHARED_FRACTION = 0.1
"""A training document with a larger part of its runs of `SHINGLE_WORDS` words in held-out documents is left out."""
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
    shingles = {shingle for document in held_out for shingle in _shingles(document.text)}
    candidates = [document for document in ordered if not _is_held_out(document, seed)]
    corpus = [document for document in candidates if _shared_fraction(document.text, shingles) <= MOST_SHARED_FRACTION]
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


def _shingles(text: str) -> set[int]:
    words = plain_words(text)
    # Python's hash of a tuple of strings differs from run to run, but whether two are equal does not.
    return {hash(tuple(words[start : start + SHINGLE_WORDS])) for start in range(len(words) - SHINGLE_WORDS + 1)}


def _shared_fraction(text: str, shingles: set[int]) -> float:
    own = _shingles(text)
    return len(own & shingles) / max(1, len(own))


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
