"""Perplexity under one stated protocol, the same windows for teacher and student."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from asnn_goose.config_text import Protocol, RecordedProtocol, StandardProtocol
from asnn_goose.data.tokens import TokenRows, tokenize_lines, tokenize_text
from asnn_goose.errors import DataError
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.kernels.kd_loss import cross_entropy_sums

IGNORED = -100
CHUNK_TOKENS = 256

HiddenStates = Callable[[Int[Tensor, "batch time"]], Float[Tensor, "batch time width"]]


@dataclass(frozen=True)
class EvaluationWindows:
    """The windows a protocol cuts from a text, and the words that state it.

    Attributes:
        rows: Token windows.
        kind: `standard` or `recorded`.
        statement: The protocol in one line, printed with every figure.
    """

    rows: TokenRows
    kind: str
    statement: str

    def probe(self, tokens: int) -> Int[Tensor, "batch time"]:
        """The leading windows that hold about so many tokens, at least one window."""
        count = min(max(tokens // self.rows.window, 1), len(self.rows))
        return torch.from_numpy(self.rows.take(np.arange(count)))

    @property
    def scored_tokens(self) -> int:
        """Tokens whose loss counts: all but the first of each window."""
        return len(self.rows) * (self.rows.window - 1)


@dataclass(frozen=True)
class PerplexityResult:
    """A measured perplexity.

    Attributes:
        loss_nats: Mean negative log-likelihood over the scored tokens, in nats.
        scored_tokens: Number of tokens scored.
    """

    loss_nats: float
    scored_tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss_nats); see `perplexity_of`."""
        return perplexity_of(self.loss_nats)


def perplexity_of(loss_nats: float) -> float:
    """exp(loss_nats), never capped; infinite where the exponential overflows."""
    try:
        return math.exp(loss_nats)
    except OverflowError:
        return math.inf


def evaluation_windows(text: str, tokenizer: Any, protocol: Protocol) -> EvaluationWindows:
    """Cut a text into a protocol's windows.

    Standard: the text as one string, one tokenizer call, no special tokens, non-overlapping windows, the
    remainder dropped. Recorded: blank lines dropped, each line tokenized alone and cut, windows that overlap
    by half, so that nearly every token is scored twice.

    Raises:
        DataError: The text does not fill one window.
    """
    match protocol:
        case StandardProtocol():
            tokens, stride = tokenize_text(text, tokenizer), protocol.window
            how = "text as one string, no special tokens"
        case RecordedProtocol():
            tokens, stride = tokenize_lines(text, tokenizer, protocol.max_line_tokens), protocol.window // 2
            how = f"lines alone, cut at {protocol.max_line_tokens} tokens, no special tokens"
    kept = tokens if protocol.tokens is None else tokens[: protocol.tokens]
    rows = TokenRows(kept, protocol.window, stride)
    if len(rows) == 0:
        raise DataError(
            f"the evaluation text has {len(kept)} tokens, fewer than one window of {protocol.window}: give more text "
            "or a smaller evaluation.window"
        )
    share = "all" if len(kept) == len(tokens) else "the first"
    statement = (
        f"{how}; windows of {protocol.window}, stride {stride}, first token of each not scored; "
        f"{share} {len(kept):,} tokens"
    )
    return EvaluationWindows(rows, protocol.kind, statement)


@torch.inference_mode()
def measure_perplexity(
    hidden_states: HiddenStates,
    head: LinearHead,
    windows: EvaluationWindows,
    batch_size: int = 8,
    on_progress: Callable[[int], None] = lambda done: None,
) -> PerplexityResult:
    """Perplexity of a model given by its hidden states and head; sums are kept in float64.

    Args:
        hidden_states: Maps ids to final hidden states, in evaluation mode.
        head: Output head.
        windows: What is scored.
        batch_size: Windows a forward pass takes.
        on_progress: Told the number of windows done after each batch.
    """
    device = head.weight.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    count = len(windows.rows)
    for start in range(0, count, batch_size):
        end = min(start + batch_size, count)
        ids = torch.from_numpy(windows.rows.take(np.arange(start, end))).to(device)
        hidden = hidden_states(ids)
        labels = torch.full_like(ids, IGNORED)
        labels[:, :-1] = ids[:, 1:]
        losses = cross_entropy_sums(hidden.flatten(0, 1), head, labels.flatten(), CHUNK_TOKENS)
        total += losses.double().sum()
        on_progress(end)
    return PerplexityResult(float(total) / windows.scored_tokens, windows.scored_tokens)
