import errno
import os
from pathlib import Path

import pytest

from asnn_goose.data.cache import atomic_directory, atomic_file, cache_directory, writing_to
from asnn_goose.errors import MachineError


def half_write(path: Path) -> None:
    path.write_text("half")
    raise FileNotFoundError


def test_cache_directory_is_the_one_the_variable_names_and_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASNN_GOOSE_CACHE", str(tmp_path / "deep" / "cache"))
    assert cache_directory() == tmp_path / "deep" / "cache"
    assert cache_directory().is_dir()


def test_cache_directory_without_the_variable_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASNN_GOOSE_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name, appauthor: tmp_path / name)
    assert cache_directory() == tmp_path / "asnn-goose"


def test_unusable_cache_directory_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ASNN_GOOSE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(MachineError, match=r"Not a directory.*ASNN_GOOSE_CACHE"):
        cache_directory()


def test_read_only_cache_directory_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(MachineError, match=r"not writable.*ASNN_GOOSE_CACHE"):
        cache_directory()


def test_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "file"
    with atomic_file(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_file_is_as_before_after_an_exception(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("before")
    with pytest.raises(FileNotFoundError), atomic_file(target) as temporary:
        half_write(temporary)
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_file_follows_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "file") as temporary:
            temporary.write_text("shared")
    finally:
        os.umask(previous)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_directory_replaces_an_older_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "directory"
    target.mkdir()
    (target / "old").write_text("old")
    with atomic_directory(target) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "new").write_text("new")
    assert [path.relative_to(target).as_posix() for path in sorted(target.rglob("*"))] == ["inner", "inner/new"]
    assert list(tmp_path.iterdir()) == [target]


def test_directory_is_as_before_after_an_exception(tmp_path: Path) -> None:
    target = tmp_path / "directory"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_directory(target) as temporary:
        half_write(temporary / "new")
    assert (target / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("context", [atomic_file, atomic_directory, writing_to])
def test_full_disk_is_one_line_that_names_the_target(context: type, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"disk full while writing .*target") as caught, context(tmp_path / "target"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_seen_through_a_librarys_own_error(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="disk full"), writing_to(tmp_path):
        raise RuntimeError("library") from OSError(errno.ENOSPC, "No space left on device")


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), atomic_file(tmp_path / "target"):
        raise IsADirectoryError


def test_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="cannot write to"), atomic_file(tmp_path / "file" / "target"):
        pass
