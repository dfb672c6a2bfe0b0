"""What teacher and student write when they go on from the same held-out text: quality that a reader can judge."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from asnn_goose.data.tokens import TokenRows
from asnn_goose.inference.generation import SamplingOptions, continue_side_by_side
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.teacher import Teacher
from asnn_goose.results import Sample

PROMPT_TOKENS, NEW_TOKENS = 16, 48
SHORTEST_DOCUMENT_CHARACTERS = 200
"""Shorter documents, such as headings, make no beginning."""
READ_CHARACTERS = 40 * PROMPT_TOKENS
MOST_DOCUMENTS = 1_000


def held_out_beginnings(
    documents: Sequence[str], rows: TokenRows, tokenizer: PreTrainedTokenizerBase, count: int
) -> tuple[Int[Tensor, " prompt"], ...]:
    """First tokens of held-out documents, evenly spaced; where there are too few documents, of evaluation windows."""
    if count == 0:
        return ()
    texts = [text for text in islice(documents, MOST_DOCUMENTS) if len(text) >= SHORTEST_DOCUMENT_CHARACTERS]
    if len(texts) < count:
        return tuple(torch.from_numpy(row[:PROMPT_TOKENS]) for row in rows.take(_evenly(count, len(rows))))
    chosen = [texts[place][:READ_CHARACTERS] for place in _evenly(count, len(texts))]
    encoded = tokenizer(chosen, add_special_tokens=False)["input_ids"]
    return tuple(torch.tensor(tokens[:PROMPT_TOKENS]) for tokens in encoded)


def sample_side_by_side(
    teacher: Teacher, student: GooseForCausalLM, beginnings: Sequence[Int[Tensor, " prompt"]], seed: int
) -> tuple[Sample, ...]:
    """Both models' continuations of each beginning, drawn with the same seed; none if the positions leave no room."""
    # A model without learned or rotary positions, such as Bloom, states no limit.
    limits = [getattr(model.config, "max_position_embeddings", None) for model in (teacher.model, student)]
    room = min(limit for limit in (*limits, PROMPT_TOKENS + NEW_TOKENS) if limit) - PROMPT_TOKENS
    if room < 1:
        return ()
    options = SamplingOptions(max_new_tokens=room, seed=seed)
    pairs = continue_side_by_side(teacher.model, student.eval(), teacher.tokenizer, beginnings, options)
    return tuple(Sample(prompt=pair.prompt, teacher=pair.teacher, student=pair.student) for pair in pairs)


def _evenly(count: int, of: int) -> np.ndarray:
    """`count` places from the first to before the last of `of`, which may come twice if there are fewer."""
    return np.arange(count) * of // count
