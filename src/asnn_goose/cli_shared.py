"""What the commands share: exit codes, how a model is named, where they print, and what stays off the screen."""

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

EXIT_DONE, EXIT_CHECK_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130

ModelArgument = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Run folder, model directory, hub id, .gguf file, `pocket` or `smollm2`."),
]


def make_console(stderr: bool = False) -> Console:
    """Where a command prints; the error stream is for what is no result."""
    return Console(stderr=stderr)


def quiet_libraries() -> None:
    """Keep the libraries' own logs and bars away from the user's screen; ours stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", module=r"(transformers|datasets|accelerate|huggingface_hub|torch)\b.*")


@contextmanager
def importing() -> Iterator[None]:
    """Within the block modules are imported without a search for garbage.

    Torch and transformers make half a million objects that stay, and every search looks at all of them again; those
    that stand in the end are not searched any more.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
