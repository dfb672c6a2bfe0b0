"""What a run reads, made ready once: any source of text as token rows of any window, and its held-out text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer
from rich.console import Console

from asnn_goose.config_text import Data, MixedText, PackedRows, PlainData, Rows, TeacherSamples
from asnn_goose.data.curriculum import Course
from asnn_goose.data.mixture import MixedRows
from asnn_goose.data.text import load_text
from asnn_goose.data.tokens import TokenRows, tokenize_documents, training_rows
from asnn_goose.inference.teacher_corpus import teacher_samples
from asnn_goose.models.teacher import Teacher


@dataclass(frozen=True, eq=False)
class TokenizedText:
    """One text as tokens, memory-mapped from the cache."""

    tokens: Integer[np.ndarray, " tokens"]
    """Its training documents."""
    cut: Rows
    """How the tokens become rows."""
    weight: float = 1.0
    """Its weight in a mixture."""


@dataclass(frozen=True, eq=False)
class PreparedText:
    """Text to train on and text to evaluate on, tokenized."""

    parts: tuple[TokenizedText, ...]
    """What is trained on; more than one in a mixture."""
    held_out: Sequence[str]
    """Documents that are only evaluated on."""
    separator: str
    """What joins them into one evaluation text."""
    source: str
    """One line that says where the text came from."""
    course: Course | None = None
    """Which rows are open when; None opens all of them from the start."""

    def rows(self, window: int, weights: Sequence[float] | None = None) -> TokenRows | MixedRows:
        """Training rows of `window` tokens; cheap, so that each stage of a run may have its own window and mixture.

        Args:
            window: Tokens a row holds.
            weights: One for each part in place of its own; a part of weight 0 is left out.

        Raises:
            DataError: A text has fewer than two rows.
        """
        weighed = list(zip(self.parts, weights or [part.weight for part in self.parts], strict=True))
        used = [(part, weight) for part, weight in weighed if weight > 0]
        rows = tuple(training_rows(part.tokens, window, part.cut) for part, _ in used)
        return rows[0] if len(rows) == 1 else MixedRows(rows, tuple(weight for _, weight in used))


def prepare_text(data: Data, seed: int, teacher: Teacher, console: Console) -> PreparedText:
    """Read, tokenize and, where the teacher is to write text itself, generate what a recipe's `data` describes.

    Args:
        data: The source.
        seed: Decides which documents are held out, if the source does not say, and what the teacher writes.
        teacher: Whose tokenizer is used, and who writes.
        console: Where progress is shown.

    Raises:
        ConfigError: As `teacher_samples`.
        DataError: As `load_text`, `tokenize_documents` and `teacher_samples`.
        HubUnreachableError: As `load_text`.
        MachineError: The cache cannot be written.
    """
    if isinstance(data, TeacherSamples):
        return _prepare_samples(data, seed, teacher, console)
    if not isinstance(data, MixedText):
        return _prepare_plain(data, seed, teacher)
    total = sum(part.weight for part in data.parts)
    texts = [prepare_text(part.text, seed, teacher, console) for part in data.parts]
    parts = tuple(
        TokenizedText(text.parts[0].tokens, text.parts[0].cut, part.weight / total)
        for text, part in zip(texts, data.parts, strict=True)
    )
    described = [f"{part.weight:.1%} {text.source}" for text, part in zip(texts, parts, strict=True)]
    evaluated = texts[data.held_out_from]
    source = f"a mixture of {'; '.join(described)}; evaluated on part {data.held_out_from}"
    return PreparedText(parts, evaluated.held_out, evaluated.separator, source)


def _prepare_plain(data: PlainData, seed: int, teacher: Teacher) -> PreparedText:
    text = load_text(data, seed)
    tokens = tokenize_documents(text.train, teacher.tokenizer, data.rows)
    return PreparedText((TokenizedText(tokens, data.rows),), text.held_out, text.separator, text.source)


def _prepare_samples(data: TeacherSamples, seed: int, teacher: Teacher, console: Console) -> PreparedText:
    prompts = _prepare_plain(data.prompts, seed, teacher)
    tokens = teacher_samples(teacher, prompts.parts[0].tokens, data, seed, console)
    source = f"{len(tokens):,} tokens written by {teacher.name}, prompts: {prompts.source}"
    return PreparedText((TokenizedText(tokens, PackedRows()),), prompts.held_out, prompts.separator, source)
