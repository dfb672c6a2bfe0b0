import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizerLegacy, PreTrainedTokenizerBase

from asnn_goose.config_text import PackedRows, RecordedRows
from asnn_goose.data import tokens as module
from asnn_goose.data.tokens import (
    TokenRows,
    tokenize_documents,
    tokenize_lines,
    tokenize_text,
    tokenizer_hash,
    training_rows,
)
from asnn_goose.errors import DataError

PACKED, RECORDED = PackedRows(), RecordedRows(max_line_tokens=5)
PROSE = "The goose flies.\nIt is gray .\n\nA new paragraph\nof two lines, 123 words.\n"


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    found: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return found


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASNN_GOOSE_CACHE", str(tmp_path))
    return tmp_path


def test_packed_documents_stand_between_end_of_text_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenize_documents(["One goose.", " ", "Two.", "Three.\n", ""], tokenizer, PACKED)
    end = [tokenizer.eos_token_id]
    expected = [*ids(tokenizer, "One goose."), *end, *ids(tokenizer, "Two."), *end, *ids(tokenizer, "Three.\n")]
    assert tokens.tolist() == expected


def test_packed_tokens_decode_to_their_documents(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenize_documents([PROSE, "naïve 🪿 café"], tokenizer, PACKED)
    assert tokenizer.decode(tokens) == f"{PROSE}<|endoftext|>naïve 🪿 café"


def test_recorded_lines_are_tokenized_alone_and_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenize_documents([" One.\n\n \nTwo geese fly over the lake.", "Three.\n"], tokenizer, RECORDED)
    lines = [" One.\n", "Two geese fly over the lake.", "Three.\n"]
    assert tokens.tolist() == [token for line in lines for token in ids(tokenizer, line)[:5]]


def test_recorded_text_is_tokenized_as_recorded_documents_are(tokenizer: PreTrainedTokenizerBase) -> None:
    lines = tokenize_lines(PROSE, tokenizer, max_line_tokens=5)
    assert lines.tolist() == tokenize_documents([PROSE], tokenizer, RECORDED).tolist()
    assert lines.dtype == np.int64


def test_text_is_one_call_without_special_tokens_or_warnings(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("transformers").addHandler(caplog.handler)
    tokens = tokenize_text(PROSE * 10, tokenizer)
    assert len(tokens) > tokenizer.model_max_length
    assert tokens.tolist() == ids(tokenizer, PROSE * 10)
    assert caplog.records == []


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_blank_text_has_no_lines(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenize_lines(text, tokenizer, 5).shape == (0,)
    assert tokenize_text("", tokenizer).shape == (0,)


def test_long_document_in_pieces_has_the_tokens_of_the_whole(
    tokenizer: PreTrainedTokenizerBase, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 300)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 700)
    monkeypatch.setattr(module, "BATCH_TEXTS", 3)
    document = " " + PROSE * 50
    tokens = tokenize_documents(["First.", document, "Last."], tokenizer, PACKED)
    end = [tokenizer.eos_token_id]
    assert tokens.tolist() == [
        *ids(tokenizer, "First."),
        *end,
        *ids(tokenizer, document),
        *end,
        *ids(tokenizer, "Last."),
    ]


@pytest.mark.parametrize("unbroken", ["x" * 5_000, "word " * 1_000, "a\n\n" * 1_500])
def test_piece_is_never_longer_than_its_limit_and_none_is_lost(unbroken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 300)
    pieces = list(module._short_pieces(unbroken))
    assert "".join(pieces) == unbroken
    assert 0 < min(map(len, pieces)) <= max(map(len, pieces)) <= 300


def test_tokens_are_small_numbers_read_from_the_disk(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = tokenize_documents([PROSE], tokenizer, PACKED)
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == np.uint16
    assert not tokens.flags.writeable


def test_vocabulary_beyond_16_bits_takes_32(
    tokenizer: PreTrainedTokenizerBase, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: {"last": 2**16})
    assert tokenize_documents([PROSE], tokenizer, PACKED).dtype == np.uint32


def test_same_content_is_tokenized_once(
    tokenizer: PreTrainedTokenizerBase, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tokenize_documents((PROSE, "Two."), tokenizer, PACKED)
    monkeypatch.setattr(module, "_token_ids", lambda texts, tokenizer: pytest.fail("tokenized again"))
    assert np.array_equal(tokenize_documents([PROSE, "Two."], tokenizer, PACKED), first)


@pytest.mark.parametrize("other", [["Two.", "One."], ["One.Two."], ["One.", "Two.", "Three."], ["One.T", "wo."]])
def test_other_content_is_cached_apart(tokenizer: PreTrainedTokenizerBase, other: list[str]) -> None:
    tokens = tokenize_documents(["One.", "Two."], tokenizer, PACKED)
    assert tokenize_documents(other, tokenizer, PACKED).tolist() != tokens.tolist()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def shorten(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


def garble(path: Path) -> None:
    path.write_bytes(b"x")
    path.with_suffix(".json").write_text("{")


@pytest.mark.parametrize("damage", [truncate, shorten, garble, Path.unlink])
def test_damaged_cache_is_made_again(
    tokenizer: PreTrainedTokenizerBase, empty_cache: Path, damage: Callable[[Path], None]
) -> None:
    whole = tokenize_documents([PROSE], tokenizer, PACKED).tolist()
    damage(next(empty_cache.glob("tokens/*/tokens.npy")))
    assert tokenize_documents([PROSE], tokenizer, PACKED).tolist() == whole
    assert len(list(empty_cache.glob("tokens/*"))) == 1


def test_tokenizer_without_end_of_text_is_named(tokenizer_without_eos: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"PreTrainedTokenizerFast|TokenizersBackend.*data.rows.kind=recorded"):
        tokenize_documents(["One."], tokenizer_without_eos, PACKED)
    assert len(tokenize_documents(["One."], tokenizer_without_eos, RECORDED)) > 0


@pytest.mark.parametrize("rows", [PACKED, RECORDED])
def test_blank_documents_are_refused_and_leave_nothing(
    tokenizer: PreTrainedTokenizerBase, empty_cache: Path, rows: PackedRows | RecordedRows
) -> None:
    with pytest.raises(DataError, match="no text"):
        tokenize_documents(["", "\n"], tokenizer, rows)
    assert list(empty_cache.glob("tokens/*")) == []


def test_progress_goes_to_stderr_and_only_to_a_terminal(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PROGRESS_AFTER_SECONDS", -1.0)
    tokenize_documents(["Seen by nobody."], tokenizer, PACKED)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    tokenize_documents(["Seen by somebody."] * 3, tokenizer, PACKED)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "tokenizing 3 documents" in shown.err


def test_hash_is_of_the_vocabulary_and_not_of_the_last_calls_options(
    tokenizer: PreTrainedTokenizerBase, tokenizer_without_eos: PreTrainedTokenizerBase
) -> None:
    before = tokenizer_hash(tokenizer)
    tokenizer(["One.", "Two geese."], truncation=True, max_length=2, padding=False)
    assert tokenizer_hash(tokenizer) == before
    assert len(before) == 64
    assert tokenizer_hash(tokenizer_without_eos) != before


def test_slow_tokenizer_has_a_hash_and_gives_tokens(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "goose", "flies"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    slow = BertTokenizerLegacy(str(tmp_path / "vocab.txt"))
    assert not slow.is_fast
    assert len(tokenizer_hash(slow)) == 64
    assert tokenize_documents(["goose flies"], slow, RECORDED).tolist() == [5, 6]


@pytest.mark.parametrize(
    ("count", "window", "stride", "rows"), [(0, 4, 4, 0), (3, 4, 4, 0), (4, 4, 4, 1), (11, 4, 4, 2), (11, 4, 2, 4)]
)
def test_number_of_rows_drops_the_partial_window(count: int, window: int, stride: int, rows: int) -> None:
    assert len(TokenRows(np.arange(count), window, stride)) == rows


def test_rows_are_windows_at_their_strides() -> None:
    rows = TokenRows(np.arange(10, dtype=np.uint16), window=4, stride=2)
    taken = rows.take(np.array([3, 0]))
    assert taken.tolist() == [[6, 7, 8, 9], [0, 1, 2, 3]]
    assert taken.dtype == np.int64


@pytest.mark.parametrize("index", [-1, 4])
def test_row_outside_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match=r"in \[0, 4\)"):
        TokenRows(np.arange(10), window=4, stride=2).take(np.array([0, index]))


@pytest.mark.parametrize(("rows", "stride"), [(PACKED, 6), (RECORDED, 3)])
def test_packed_rows_lie_side_by_side_and_recorded_ones_overlap(rows: PackedRows | RecordedRows, stride: int) -> None:
    made = training_rows(np.arange(100), 6, rows)
    assert (made.window, made.stride) == (6, stride)


@pytest.mark.parametrize(("rows", "needed"), [(PACKED, 12), (RECORDED, 9)])
def test_fewer_than_two_rows_are_refused(rows: PackedRows | RecordedRows, needed: int) -> None:
    assert len(training_rows(np.arange(needed), 6, rows)) == 2
    with pytest.raises(DataError, match=rf"has {needed - 1} tokens.*need {needed};"):
        training_rows(np.arange(needed - 1), 6, rows)
