import sys
from types import ModuleType

import pytest

from asnn_goose.data import pydoc_harvest
from asnn_goose.data.pydoc_harvest import collect_documents

SOURCE = '''
"""A pond."""
import os

class Bird:
    """A bird."""
    def fly(self, height=1.5, where=os.environ, path="/root/secret", kind="gray", mark=object()):
        """Fly away."""
    def _moult(self):
        """Not for readers."""
    @property
    def name(self):
        """What it is called."""
    def __eq__(self, other):
        """Return self==value."""

class Goose(Bird):
    def fly(self):
        """Fly away."""

def honk(times: int = 2) -> None:
    """Make a noise."""

def silent():
    pass
'''

EXPECTED = """pond

A pond.

class pond.Bird()

A bird.

pond.Bird.fly(self, height=1.5, where=..., path=..., kind='gray', mark=...)

Fly away.

pond.Bird.name

What it is called.

pond.honk(times: int = 2) -> None

Make a noise."""


@pytest.fixture
def only_pond(monkeypatch: pytest.MonkeyPatch) -> None:
    pond = ModuleType("pond")
    exec(SOURCE, pond.__dict__)
    monkeypatch.setitem(sys.modules, "pond", pond)
    monkeypatch.setattr(pydoc_harvest, "module_names", lambda: ["pond"])
    monkeypatch.setattr(pydoc_harvest, "_topics", lambda: iter(["topic", "topic"]))


@pytest.mark.usefixtures("only_pond")
def test_document_holds_each_public_docstring_once_with_its_signature() -> None:
    assert collect_documents() == ["topic", EXPECTED]


def test_modules_that_act_when_imported_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdlib_module_names", frozenset({"antigravity", "_thread", "json", "this", "missing"}))
    assert pydoc_harvest.module_names() == [
        "json",
        "json.decoder",
        "json.encoder",
        "json.scanner",
        "json.tool",
        "missing",
    ]


@pytest.mark.parametrize("failure", [ImportError, OSError, SystemExit])
def test_module_that_fails_is_passed_over(monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]) -> None:
    def fail(name: str) -> None:
        raise failure

    monkeypatch.setattr(pydoc_harvest.importlib, "import_module", fail)
    assert pydoc_harvest._imported("anything") is None
