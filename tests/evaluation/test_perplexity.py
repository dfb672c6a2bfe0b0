import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from asnn_goose.config_text import RecordedProtocol, StandardProtocol
from asnn_goose.data.tokens import TokenRows
from asnn_goose.errors import DataError
from asnn_goose.evaluation.perplexity import (
    EvaluationWindows,
    evaluation_windows,
    measure_perplexity,
    perplexity_of,
)
from asnn_goose.kernels.head_chunks import LinearHead

VOCABULARY, WIDTH = 17, 5


@pytest.fixture
def characters() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the ASCII characters, by their codes."""
    tokenizer = Tokenizer(models.WordLevel({chr(code): code for code in range(128)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def windows_of(tokens: list[int], window: int, stride: int) -> EvaluationWindows:
    return EvaluationWindows(TokenRows(np.array(tokens), window, stride), "standard", "")


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity() -> None:
    head = LinearHead(torch.zeros(VOCABULARY, WIDTH), None)
    windows = windows_of(list(range(16)), window=4, stride=4)
    result = measure_perplexity(lambda ids: torch.ones(*ids.shape, WIDTH), head, windows)
    assert result.perplexity == pytest.approx(VOCABULARY)
    assert result.scored_tokens == 4 * 3


def test_the_first_token_of_each_window_is_not_scored_and_the_remainder_is_dropped() -> None:
    embedding = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64)
    head = LinearHead(torch.randn(VOCABULARY, WIDTH, dtype=torch.float64), None)
    tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    result = measure_perplexity(lambda ids: embedding[ids], head, windows_of(tokens, 4, 4), batch_size=1)
    log_probability = functional.log_softmax(embedding @ head.weight.T, dim=-1)
    scored = [(3, 1), (1, 4), (4, 1), (5, 9), (9, 2), (2, 6)]
    assert result.loss_nats == pytest.approx(-sum(log_probability[a, b].item() for a, b in scored) / 6)


def test_the_standard_protocol_is_one_string_in_windows_side_by_side(characters: PreTrainedTokenizerFast) -> None:
    windows = evaluation_windows("abcdefghij", characters, StandardProtocol(window=4))
    assert windows.rows.stride == 4
    assert windows.scored_tokens == 2 * 3
    assert "windows of 4, stride 4, first token of each not scored; all 10 tokens" in windows.statement


def test_the_recorded_protocol_overlaps_by_half_and_drops_blank_lines(characters: PreTrainedTokenizerFast) -> None:
    windows = evaluation_windows("abc\n\n  \ndef\n", characters, RecordedProtocol(window=4))
    assert windows.rows.tokens.tolist() == [ord(sign) for sign in "abc\ndef\n"]
    assert windows.rows.stride == 2
    assert len(windows.rows) == 3


def test_a_token_limit_is_said(characters: PreTrainedTokenizerFast) -> None:
    windows = evaluation_windows("abcdefghij", characters, StandardProtocol(window=4, tokens=8))
    assert "the first 8 tokens" in windows.statement


def test_a_text_shorter_than_a_window_is_refused(characters: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="3 tokens, fewer than one window of 4"):
        evaluation_windows("abc", characters, StandardProtocol(window=4))


def test_perplexity_is_never_capped() -> None:
    assert perplexity_of(20.0) == pytest.approx(math.exp(20.0))
    assert perplexity_of(1e6) == math.inf


def test_the_probe_is_the_leading_windows() -> None:
    windows = windows_of(list(range(40)), window=4, stride=4)
    assert windows.probe(9).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert windows.probe(1).shape == (1, 4)
