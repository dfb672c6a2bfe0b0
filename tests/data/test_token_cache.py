from pathlib import Path

import numpy as np
import pytest

from asnn_goose.data.token_cache import read_cached_tokens, token_dtype, write_tokens


def test_pieces_are_read_back_as_one_row_memory_mapped(tmp_path: Path) -> None:
    count = write_tokens(tmp_path, [[1, 2], [], np.array([3, 65_535])], token_dtype(65_535))
    tokens = read_cached_tokens(tmp_path)
    assert isinstance(tokens, np.memmap)
    assert (count, tokens.tolist(), tokens.dtype) == (4, [1, 2, 3, 65_535], np.uint16)


def test_no_piece_is_an_empty_row(tmp_path: Path) -> None:
    assert write_tokens(tmp_path, [], token_dtype(9)) == 0


def test_an_id_that_two_bytes_do_not_hold_takes_four() -> None:
    assert (token_dtype(2**16 - 1), token_dtype(2**16)) == (np.uint16, np.uint32)


def test_nothing_there_is_nothing_and_damage_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_cached_tokens(tmp_path) is None
    assert caplog.text == ""
    write_tokens(tmp_path, [[1, 2, 3]], token_dtype(9))
    np.save(tmp_path / "tokens.npy", np.arange(2, dtype=np.uint16))
    assert read_cached_tokens(tmp_path) is None
    assert "not those once written" in caplog.text
