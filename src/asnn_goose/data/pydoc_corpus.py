"""Real prose that is present on every machine: the documentation of Python's own standard library."""

import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from asnn_goose.data.cache import atomic_file, cache_directory
from asnn_goose.errors import MachineError

logger = logging.getLogger(__name__)

PYTHON_VERSION = platform.python_version()
"""Version of the interpreter whose documentation is read, such as 3.11.7."""

HARVEST_SECONDS = 120.0
"""Longest time the collecting process may take."""

CORPUS_FORMAT = 1
"""Part of the cache's file name; raised when the same interpreter would give other documents."""


def pydoc_documents() -> list[str]:
    """The language reference's topics and one document a module of the standard library, always in one order.

    Collected once for each version of Python, in a process of its own, and kept in the cache.

    Raises:
        MachineError: The cache cannot be written, or this interpreter's documentation cannot be collected.
    """
    cached = cache_directory() / f"pydoc-{PYTHON_VERSION}-{CORPUS_FORMAT}.json"
    documents = _read_cached(cached)
    if documents is None:
        with atomic_file(cached) as temporary:
            temporary.write_bytes(_harvest())
        documents = _read_cached(cached)
    if not documents:
        raise MachineError(
            f"{sys.executable} holds no documentation of its standard library; give data.path=FILE with a .txt, .jsonl "
            "or .parquet file"
        )
    return documents


def _read_cached(cached: Path) -> list[str] | None:
    try:
        documents: list[str] = json.loads(cached.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        logger.warning("the cached documentation %s is damaged and is collected again", cached)
        return None
    return documents


def _harvest() -> bytes:
    """Run the collecting script; its documents as a JSON list."""
    script = Path(__file__).with_name("pydoc_harvest.py")
    # Without site-packages and without this folder on the path, only the standard library is found; a
    # fixed hash seed keeps sets that stand in signatures in one order.
    options = ["-B", "-P", "-S", "-s", "-W", "ignore"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONHASHSEED"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "documents.json"
        try:
            subprocess.run(
                [sys.executable, *options, str(script), str(output)],
                check=True,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=HARVEST_SECONDS,
            )
        except (subprocess.SubprocessError, OSError) as error:
            said = getattr(error, "stderr", None) or b""
            reason = (said.decode(errors="replace").strip().splitlines() or [str(error)])[-1]
            raise MachineError(
                f"the documentation of {sys.executable} cannot be collected ({reason}); "
                "give data.path=FILE with a .txt, .jsonl or .parquet file"
            ) from error
        return output.read_bytes()
