import sys
import time
from pathlib import Path

import pytest

from asnn_goose.data import pydoc_corpus
from asnn_goose.data.pydoc_corpus import PYTHON_VERSION, pydoc_documents
from asnn_goose.errors import MachineError

FIRST_SECONDS = 20.0


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASNN_GOOSE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    directory = tmp_path_factory.mktemp("collected")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASNN_GOOSE_CACHE", str(directory))
        started, before = time.monotonic(), set(sys.modules)
        documents = pydoc_documents()
        assert time.monotonic() - started < FIRST_SECONDS
        assert set(sys.modules) == before, "the modules were imported in this process"
    return directory, documents


def test_corpus_is_some_megabytes_of_distinct_documents(collected: tuple[Path, list[str]]) -> None:
    _, documents = collected
    assert 1_000_000 < sum(map(len, documents)) < 4_000_000
    assert len(set(documents)) == len(documents) > 200
    assert all(document.strip() for document in documents)


def test_corpus_is_the_same_whatever_the_environment(
    collected: tuple[Path, list[str]], empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("GOOSE_SECRET", "never-in-a-corpus")
    assert pydoc_documents() == collected[1]
    assert not any("never-in-a-corpus" in document for document in collected[1])


def test_second_call_reads_the_cache(collected: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    directory, documents = collected
    assert PYTHON_VERSION in next(directory.iterdir()).name
    monkeypatch.setenv("ASNN_GOOSE_CACHE", str(directory))
    monkeypatch.setattr(pydoc_corpus, "_harvest", lambda: pytest.fail("collected again"))
    assert pydoc_documents() == documents


def test_damaged_cache_is_made_again(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pydoc_corpus, "_harvest", lambda: b'["whole"]')
    pydoc_documents()
    next(empty_cache.iterdir()).write_text('["half')
    assert pydoc_documents() == ["whole"]


def test_interpreter_that_fails_is_named_in_one_line(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(MachineError, match=r"/nowhere/python cannot be collected.*data.path=FILE") as caught:
        pydoc_documents()
    assert "\n" not in str(caught.value)
    assert list(empty_cache.iterdir()) == []
