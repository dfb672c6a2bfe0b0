"""torch.compile as this package uses it: it may fail without harm, and what it has compiled is counted."""

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from accelerate.utils import compile_regions
from torch import nn
from torch._dynamo.utils import counters

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
Form = TypeVar("Form")


class CompiledForm(Generic[Form]):
    """Something beside its compiled form, which is used until it fails: then never again, with one warning.

    torch.compile fails at the first call, not where it is asked for, so the decision falls there.

    Args:
        plain: A module or function.
        compiled: Its compiled form, or None where it was not asked for.
        role: What the warning calls it.
    """

    def __init__(self, plain: Form, compiled: Form | None, role: str) -> None:
        self.plain, self.compiled, self.role = plain, compiled, role

    def run(self, act: Callable[[Form], Found]) -> Found:
        """What the act finds with the compiled form, or with the plain one."""
        if self.compiled is not None:
            try:
                return act(self.compiled)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                # A CUDA graph that is being recorded cannot go on after an error, whatever its cause.
                if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                    raise
                self.compiled = None
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                logger.warning("torch.compile failed for the %s (%s); it runs uncompiled", self.role, reason)
        return act(self.plain)


def compile_or_fall_back(module: Any, role: str, dynamic: bool | None = None) -> Any:
    """A compiled form of a module or function that falls back, for good and with one warning, if compiling fails."""
    form = CompiledForm(module, torch.compile(module, dynamic=dynamic), role)

    def call(*arguments: Any, **options: Any) -> Any:
        """The result, compiled unless that has failed."""
        return form.run(lambda chosen: chosen(*arguments, **options))

    return call


def with_compiled_blocks(body: nn.Module, role: str) -> CompiledForm[nn.Module]:
    """A body beside a copy, of the same weights, in which one compiled block serves all that are alike.

    On an H200 the 30 blocks of SmolLM2-135M were ready after 7 s, and a batch of 24,576 tokens took 16.4 ms; as one
    graph they took 30 s to compile and 20.4 ms to run, for inside a graph transformers attends with a mask that it
    drops outside.
    """
    return CompiledForm(body, compile_regions(body, dynamic=False), role)


def compiled_graphs() -> int:
    """Graphs that this process has compiled so far: a number that goes on rising means shapes that keep changing."""
    return int(counters["stats"]["unique_graphs"])
