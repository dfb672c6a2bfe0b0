"""What the commands share: exit codes, how a model is named, where they print, and what stays off the screen."""

import os
import warnings
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
