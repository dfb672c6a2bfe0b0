"""torch.compile as this package uses it: it may fail without harm, and what it has compiled is counted."""

import logging
from typing import Any

import torch
from torch._dynamo.utils import counters

logger = logging.getLogger(__name__)


def compile_or_fall_back(module: Any, role: str, dynamic: bool | None = None) -> Any:
    """A compiled form of a module or function that falls back, for good and with one warning, if compiling fails.

    torch.compile fails at the first call, not here, so the fallback is decided there.
    """
    compiled = torch.compile(module, dynamic=dynamic)
    failed = False

    def call(*arguments: Any, **options: Any) -> Any:
        """The result, compiled unless that has failed."""
        nonlocal failed
        if not failed:
            try:
                return compiled(*arguments, **options)
            except Exception as error:
                failed = True
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                logger.warning("torch.compile failed for the %s (%s); it runs uncompiled", role, reason)
        return module(*arguments, **options)

    return call


def compiled_graphs() -> int:
    """Graphs that this process has compiled so far: a number that goes on rising means shapes that keep changing."""
    return int(counters["stats"]["unique_graphs"])
