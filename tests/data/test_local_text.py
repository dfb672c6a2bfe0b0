import errno
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from asnn_goose.data import local_text
from asnn_goose.data.documents import ArrowDocuments
from asnn_goose.data.local_text import local_documents
from asnn_goose.errors import DataError


def write_rows(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        local_documents(path, "text", None)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_text_file_is_one_document_with_line_feeds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffOne\r\ntwö\rthree\n".encode())
    assert local_documents(tmp_path / "a.txt", "text", None) == ["One\ntwö\nthree\n"]


def test_row_is_a_document(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "one\n", "n": 1}, {"n": "x", "text": ""}])
    assert local_documents(path, "text", None) == ["one\n", ""]
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2], "text": ["one\n", ""]}), tmp_path / "a.parquet")
    assert local_documents(tmp_path / "a.parquet", "text", "file") == ["one\n", ""]


def test_rows_divide_into_lines(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"body": "one\ntwo"}, {"body": ""}, {"body": "three"}])
    assert local_documents(path, "body", "line") == ["one", "two", "three"]


def test_folder_is_read_in_sorted_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/c.txt", "a.TXT", ".hidden.txt", ".git/x.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert local_documents(tmp_path, "text", None) == ["a.TXT", "b/c.txt"]


def test_large_files_become_a_table_of_the_same_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(
        tmp_path / "a.jsonl", [{"text": f"row {row}", "n": [row, str(row)][row % 2]} for row in range(50)]
    )
    in_memory = local_documents(path, "text", None)
    monkeypatch.setattr(local_text, "IN_MEMORY_BYTES", 10)
    table = local_documents(path, "text", None)
    assert isinstance(table, ArrowDocuments)
    assert list(table) == in_memory


def test_table_follows_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_text, "IN_MEMORY_BYTES", 1)
    path = write_rows(tmp_path / "a.jsonl", [{"text": "before"}])
    assert list(local_documents(path, "text", None)) == ["before"]
    write_rows(path, [{"text": "behind"}])
    os.utime(path, ns=(1, 1))
    assert list(local_documents(path, "text", None)) == ["behind"]


def test_large_file_is_refused_in_the_words_of_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "fine"}, {"txt": "x"}])
    small = refusal(path)
    monkeypatch.setattr(local_text, "IN_MEMORY_BYTES", 1)
    assert refusal(path) == small


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\t\n", "only white space"),
        ("a.txt", b"ab\xff\xfe", "not UTF-8 text: byte 2 is 0xff"),
        ("a.txt", b"\xef\xbb\xbfab\xff", "not UTF-8 text: byte 5 is 0xff"),
        ("a.txt", b"PK\x03\x04\x00", "binary: byte 4 is zero"),
        ("a.pdf", b"%PDF", "'.pdf'; give a .txt"),
        ("a.jsonl", b'{"text": "x"}\n{"text"\n', "line 2, is not JSON"),
        ("a.jsonl", b'\n\n{"txt": "x", "id": 3}\n', "line 3, has no 'text', its keys are 'txt', 'id'"),
        ("a.jsonl", b'{"text": null, "id": 3}', "line 1: 'text' is null, not a string; its keys are 'text', 'id'"),
        ("a.jsonl", b'["text"]', "line 1, is a JSON list"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}', "byte 24 is 0xe9"),
        ("a.jsonl", b'{"text": "\\ud800"}', "line 1: 'text' holds half of a surrogate pair"),
        ("a.jsonl", b'{"text": " "}', "only white space"),
        ("a.parquet", b"PAR1 and nothing else", "not a readable Parquet file"),
    ],
)
def test_file_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert said in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"txt": ["x"], "id": [1]}, "no column 'text', its columns are 'txt', 'id'"),
        ({"text": [1, 2]}, "has int64 in its column 'text', not strings"),
        ({"text": ["x", None]}, "row 2, is null in 'text'"),
    ],
)
def test_parquet_column_is_refused_in_one_line(tmp_path: Path, columns: dict[str, list[object]], said: str) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert said in refusal(tmp_path / "a.parquet")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist; give a .txt" in refusal(tmp_path / "missing.txt")


def test_folder_without_text_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("a.md", "b.md", "c"):
        (tmp_path / name).write_text("x")
    assert "found: 2 of .md, 1 of no suffix" in refusal(tmp_path)


def test_folder_is_no_text_file_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    assert "found: no files" in refusal(tmp_path / "a.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a system with named pipes")
def test_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    assert "not a regular file" in refusal(tmp_path / "a.txt")


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("x")

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "cannot be read (Permission denied)" in refusal(tmp_path / "a.txt")
