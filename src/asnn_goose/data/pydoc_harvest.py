"""Collect the documentation of the running interpreter's standard library; run as a script, by path.

Documentation is read from imported modules, and importing every module of the standard library changes
the process that does it. So `pydoc_corpus` runs this file in a process of its own, and this file imports
nothing but the standard library.
"""

import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

LEFT_OUT = frozenset(
    {
        "__main__",  # this script
        "antigravity",  # opens a browser
        "distutils",  # warns, and is gone in newer versions
        "encodings",  # a hundred tables with one and the same sentence
        "ensurepip",
        "idlelib",
        "lib2to3",
        "msilib",
        "pydoc_data",  # its topics are read apart
        "test",
        "this",  # prints a poem
        "tkinter",
        "turtle",
        "turtledemo",
        "venv",
    }
)
"""Top-level modules that are not documented for readers, or that act when they are imported."""

GENERATED = frozenset({"__dict__", "__weakref__"})
"""Members that Python gives to every class, each with a docstring of its own."""

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def collect_documents() -> list[str]:
    """The language reference's topics, then one document a module: docstrings with their signatures.

    Each docstring stands once, where it is first met.
    """
    seen = set(_inherited_from_object())
    documents = list(dict.fromkeys(_topics()))
    for name in module_names():
        module = _imported(name)
        if module is not None:
            parts = list(_module_parts(module, seen))
            if parts:
                documents.append("\n\n".join(parts))
    return documents


def _topics() -> Iterator[str]:
    topics = importlib.import_module("pydoc_data.topics").topics
    for name in sorted(topics):
        yield topics[name].strip()


def module_names() -> list[str]:
    """Public modules and submodules of the standard library, sorted."""
    names = []
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in LEFT_OUT:
            continue
        names.append(name)
        module = _imported(name)
        if module is not None and hasattr(module, "__path__"):
            names += _submodule_names(module)
    return names


def _submodule_names(package: ModuleType) -> list[str]:
    found = pkgutil.walk_packages(package.__path__, prefix=f"{package.__name__}.", onerror=lambda name: None)
    return sorted(
        module.name
        for module in found
        if not any(part == "test" or part.startswith("_") for part in module.name.split("."))
    )


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    # A module of another platform, or of a library that this interpreter was built without, may fail
    # in any way, and some exit; the corpus is what this interpreter can document.
    except (Exception, SystemExit):
        return None


def _module_parts(module: ModuleType, seen: set[str]) -> Iterator[str]:
    text = _new_text(module, seen)
    if text:
        yield f"{module.__name__}\n\n{text}"
    for name in _public_names(module):
        member = inspect.getattr_static(module, name, None)
        if inspect.isclass(member):
            yield from _class_parts(member, f"{module.__name__}.{name}", seen)
        elif inspect.isroutine(member):
            yield from _routine_parts(member, f"{module.__name__}.{name}", seen)


def _public_names(module: ModuleType) -> list[str]:
    """Names a module exports: its `__all__`, else the public ones that it defines itself."""
    declared = getattr(module, "__all__", None)
    if declared is not None:
        return sorted(set(declared))
    return sorted(
        name
        for name, member in vars(module).items()
        if not name.startswith("_") and getattr(member, "__module__", None) == module.__name__
    )


def _class_parts(described: type, name: str, seen: set[str]) -> Iterator[str]:
    text = _new_text(described, seen)
    if text:
        yield f"class {name}{_signature(described)}\n\n{text}"
    for member_name, member in sorted(vars(described).items()):
        special = member_name.startswith("__") and member_name.endswith("__")
        if member_name in GENERATED or (member_name.startswith("_") and not special):
            continue
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if inspect.isroutine(function) or inspect.isdatadescriptor(function):
            yield from _routine_parts(function, f"{name}.{member_name}", seen)


def _routine_parts(described: Any, name: str, seen: set[str]) -> Iterator[str]:
    text = _new_text(described, seen)
    if text:
        yield f"{name}{_signature(described)}\n\n{text}"


def _new_text(described: Any, seen: set[str]) -> str:
    """The docstring of an object itself, empty if it has none or the same text was met before."""
    docstring = getattr(described, "__doc__", None)
    if not isinstance(docstring, str):
        return ""
    text = ADDRESS.sub("", inspect.cleandoc(docstring).strip())
    if text in seen:
        return ""
    seen.add(text)
    return text


def _inherited_from_object() -> Iterator[str]:
    for base in (object, type):
        for member in (base, *vars(base).values()):
            docstring = getattr(member, "__doc__", None)
            if isinstance(docstring, str):
                yield inspect.cleandoc(docstring).strip()


def _signature(described: Any) -> str:
    try:
        signature = inspect.signature(described)
    # Not every callable written in C states its signature, and properties have none.
    except (ValueError, TypeError):
        return ""
    shown = [parameter.replace(default=_shown(parameter.default)) for parameter in signature.parameters.values()]
    return ADDRESS.sub("", str(signature.replace(parameters=shown)))


class _Hidden:
    """Stands in a signature for a default that is not shown."""

    def __repr__(self) -> str:
        return "..."


HIDDEN = _Hidden()


def _shown(default: Any) -> Any:
    """A default as the signature shows it: three dots where it would tell of this machine.

    Some defaults are the environment, with all that is secret in it, and some are paths.
    """
    if default is inspect.Parameter.empty or default is None:
        return default
    if isinstance(default, str):
        return HIDDEN if os.path.isabs(default) else default
    return default if isinstance(default, bool | int | float | bytes) or default == () else HIDDEN


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(collect_documents()), encoding="utf-8")
