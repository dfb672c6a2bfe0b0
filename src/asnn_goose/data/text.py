"""A text source becomes two sets of documents: one to train on and one held out, which share nothing."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from asnn_goose.config_text import (
    Data,
    HubText,
    LocalText,
    MixedText,
    PlainData,
    PocketText,
    PydocText,
    TeacherSamples,
)
from asnn_goose.data.documents import choose_documents, divide_text, document_separator
from asnn_goose.data.hub_text import hub_documents
from asnn_goose.data.local_text import local_documents
from asnn_goose.data.pocket import pocket_documents
from asnn_goose.data.pydoc_corpus import PYTHON_VERSION, pydoc_documents
from asnn_goose.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextSplits:
    """Documents to train on and documents held out from training."""

    train: Sequence[str]
    """Documents that are trained on."""
    held_out: Sequence[str]
    """Documents that are only evaluated on."""
    separator: str
    """What joins documents into one evaluation text."""
    source: str
    """One line that says where the text came from."""


def held_out_source(data: Data) -> PlainData:
    """The source whose held-out text a run is evaluated on: of a mixture one part's, of samples their prompts'."""
    match data:
        case MixedText():
            return held_out_source(data.parts[data.held_out_from].text)
        case TeacherSamples():
            return data.prompts
        case _:
            return data


def load_text(data: PlainData, seed: int) -> TextSplits:
    """The documents of a text source; `seed` decides which are held out, if the source does not say.

    Raises:
        DataError: The source cannot be read, lacks what the recipe names, or is too short to split.
        HubUnreachableError: The hub does not answer and its data set is not in the local cache.
        MachineError: The cache cannot be written, or Python's documentation cannot be read.
    """
    match data:
        case PydocText():
            train: Sequence[str] = [
                part for document in pydoc_documents() for part in divide_text(document, data.documents)
            ]
            held_out: Sequence[str] | None = None
            source = f"the documentation of Python {PYTHON_VERSION}'s standard library"
        case PocketText():
            parts = (pocket_documents("train"), pocket_documents("held_out"))
            train, held_out = (
                [part for text in texts for part in divide_text(text, data.documents)] for texts in parts
            )
            source = "the stories and explanations that come with the package"
        case LocalText():
            train, held_out, source = _local_text(data)
        case HubText():
            train, held_out = hub_documents(data)
            source = " ".join(filter(None, ["hub data set", data.name, data.subset]))
            source += f", split {data.train_split}"
            source += "" if held_out is None else f", held out: split {data.evaluation_split}"
    separator = document_separator(train, data.documents)
    if held_out is None:
        train, held_out = split_documents(train, data.held_out_fraction, seed)
        source += f", held out: {data.held_out_fraction:.2%} of its characters (seed {seed})"
    return TextSplits(train=train, held_out=held_out, separator=separator, source=source)


def _local_text(data: LocalText) -> tuple[Sequence[str], Sequence[str] | None, str]:
    train = local_documents(data.path, data.text_field, data.documents)
    if data.evaluation_path is None:
        return train, None, str(data.path)
    if data.evaluation_path.resolve() == data.path.resolve():
        logger.warning(
            "data.evaluation_path is data.path, so the evaluation reads what was trained on; give another text, or "
            "null to hold some of it out"
        )
    held_out = local_documents(data.evaluation_path, data.text_field, data.documents)
    return train, held_out, f"{data.path}, held out: {data.evaluation_path}"


def split_documents(documents: Sequence[str], fraction: float, seed: int) -> tuple[Sequence[str], Sequence[str]]:
    """Documents to train on and documents held out, which together are all of them, in their order.

    Whole documents are drawn with the seed until at least `fraction` of the characters is held out. A
    document so long that taking it whole would hold out more than twice as much, or leave nothing, is
    cut instead, near the border, at a line break, else at white space: its head is trained on, its tail
    is held out, and each is the last of its documents.

    Raises:
        DataError: The text is too short to split.
    """
    lengths = np.fromiter((len(document) for document in documents), dtype=np.int64, count=len(documents))
    total = int(lengths.sum())
    goal = math.ceil(total * fraction)
    whole, cut = _draw(lengths, goal, seed)
    held_out_places = np.sort(np.asarray(whole, dtype=np.int64))
    kept = np.ones(len(documents), dtype=np.bool_)
    kept[held_out_places] = False
    head, tail = [], []
    if cut is not None:
        kept[cut] = False
        border = len(documents[cut]) - (goal - int(lengths[held_out_places].sum()))
        place = _cut_place(documents[cut], border)
        head, tail = [documents[cut][:place]], [documents[cut][place:]]
    train = choose_documents(documents, np.flatnonzero(kept).tolist(), head)
    held_out = choose_documents(documents, held_out_places.tolist(), tail)
    both_have_text = all(any(document.strip() for document in part) for part in (train, held_out))
    if not both_have_text or total * min(fraction, 1.0 - fraction) < 1.0:
        raise DataError(
            f"a text of {total} characters is too short to hold out {fraction:.2%} of it; give more text, another "
            "data.held_out_fraction, or a text of its own to evaluate on"
        )
    return train, held_out


def _draw(lengths: Int64[np.ndarray, " documents"], goal: int, seed: int) -> tuple[list[int], int | None]:
    """The documents that are held out whole, and the one that is cut, if one is."""
    whole: list[int] = []
    missing, left = goal, int(lengths.sum())
    for place in np.random.Generator(np.random.PCG64(seed)).permutation(len(lengths)).tolist():
        length = int(lengths[place])
        if missing <= 0:
            break
        if length > missing and (length - missing > goal or length >= left):
            return whole, place
        whole.append(place)
        missing -= length
        left -= length
    return whole, None


def _cut_place(document: str, border: int) -> int:
    """The line break, else the space, nearest before the border, else soon after it, else the border."""
    tail = len(document) - border
    for separator in ("\n", " "):
        before = document.rfind(separator, max(0, border - tail), border)
        if before >= 0:
            return before + 1
        after = document.find(separator, border, border + tail // 2)
        if after >= 0:
            return after + 1
    return border
