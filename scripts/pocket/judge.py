"""Whether the teacher is worth distilling from: against a trigram model, and whether it uses what it has read."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int, Integer
from rich.console import Console
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from asnn_goose.evaluation.command import EvaluationRequest, evaluate_models
from pocket.teacher import losses_nats, position_losses
from pocket.trigram import KneserNeyTrigram

logger = logging.getLogger(__name__)

MOST_PERPLEXITY_RATIO = 1 / 3
LEAST_POSITION_GAIN_NATS = 0.3
SAMPLES, SAMPLE_TOKENS = 10, 160


@dataclass(frozen=True)
class Judgment:
    """The teacher's figures on held-out text.

    Attributes:
        teacher_perplexity: Of the tokens that both models predict.
        trigram_perplexity: Of the same tokens.
        trigram_tokens: Tokens the trigram model counted.
        held_out_tokens: Tokens predicted.
        early_loss_nats: The teacher's mean loss at positions 1 to 8.
        late_loss_nats: The same from a quarter of the window on.
        passes: Whether both conditions hold.
        evaluated: Perplexity by window, as `asnn-goose evaluate` measures it on the whole held-out text.
        samples: Seeded samples of the teacher.
    """

    teacher_perplexity: float
    trigram_perplexity: float
    trigram_tokens: int
    held_out_tokens: int
    early_loss_nats: float
    late_loss_nats: float
    passes: bool
    evaluated: dict[int, float]
    samples: list[str]


def judge_teacher(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    evaluated: dict[int, float],
    corpus: Integer[np.ndarray, " tokens"],
    held_out: Int[Tensor, "rows window"],
    seed: int,
) -> Judgment:
    """Compare the teacher and a trigram model of `corpus` on the same held-out tokens."""
    started = time.monotonic()
    losses = losses_nats(model, held_out)
    trigram = trigram_losses_nats(KneserNeyTrigram(corpus, model.config.vocab_size), held_out)
    logger.info("counted the trigrams of %s tokens, %.0f s", f"{len(corpus):,}", time.monotonic() - started)
    # A trigram needs two tokens before, so the first token that a row predicts has no part.
    teacher_perplexity = math.exp(float(losses[:, 1:].double().mean()))
    trigram_perplexity = math.exp(float(trigram.mean()))
    early, late = position_losses(losses)
    better = teacher_perplexity <= MOST_PERPLEXITY_RATIO * trigram_perplexity
    return Judgment(
        teacher_perplexity=teacher_perplexity,
        trigram_perplexity=trigram_perplexity,
        trigram_tokens=len(corpus),
        held_out_tokens=trigram.size,
        early_loss_nats=early,
        late_loss_nats=late,
        passes=better and early - late >= LEAST_POSITION_GAIN_NATS,
        evaluated=evaluated,
        samples=seeded_samples(model, tokenizer, seed),
    )


def evaluated_perplexities(model: Path, text: Path, windows: Sequence[int]) -> dict[int, float]:
    """What `asnn-goose evaluate MODEL --data TEXT --window N` says, by window."""
    requests = [EvaluationRequest(str(model), str(text), None, window, None, "standard") for window in windows]
    reports = [evaluate_models(request, Console(quiet=True)) for request in requests]
    return {window: report.rows[0].perplexity for window, report in zip(windows, reports, strict=True)}


def trigram_losses_nats(
    trigram: KneserNeyTrigram, rows: Int[Tensor, "rows window"]
) -> Float64[np.ndarray, "rows predicted"]:
    """The trigram model's loss of each token of the rows but the first two."""
    return np.stack([trigram.loss_nats(row) for row in rows.numpy()])


@torch.no_grad()
def seeded_samples(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[str]:
    """Texts that the model makes from nothing, at temperature 0.8 and top-p 0.95."""
    start = torch.full((SAMPLES, 1), model.config.bos_token_id, device=model.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = model.generate(
            start, attention_mask=torch.ones_like(start), do_sample=True, temperature=0.8, top_p=0.95, top_k=0,
            max_new_tokens=min(SAMPLE_TOKENS, model.config.n_positions - 1), pad_token_id=model.config.eos_token_id,
        )  # fmt: skip
    return [text.strip() for text in tokenizer.batch_decode(drawn, skip_special_tokens=True)]
