"""What a transformer computes on the way: its sublayers one by one, and its residual stream between blocks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from asnn_goose.models.anatomy import TeacherBlock, body_blocks
from asnn_goose.models.teacher import body_hidden_states

Sublayers = Literal["mixers", "feed_forward", "all"]
"""Attention, in whose place mixers stand, the feed-forward parts, or both."""


@dataclass(frozen=True)
class SublayerRecord:
    """One sublayer in one forward pass.

    Attributes:
        stream: The residual stream that its norm reads.
        output: What it added to the stream.
        found: Of attention, what the heads found, side by side, before the output projection.
    """

    stream: Float[Tensor, "batch time width"]
    output: Float[Tensor, "batch time width"]
    found: Float[Tensor, "batch time read"] | None = None


@dataclass(frozen=True)
class BlockRecord:
    """The sublayers of one block that were asked for."""

    attention: SublayerRecord | None = None
    feed_forward: SublayerRecord | None = None


def residual_stream(
    body: nn.Module, numbers: Sequence[int], input_ids: Int[Tensor, "batch time"]
) -> tuple[Float[Tensor, "batch time width"], tuple[Float[Tensor, "batch time width"], ...]]:
    """What a body's head reads, and its residual stream at the given places, in their order.

    State 0 is what the first block reads, the embeddings' output; state i what block i - 1 leaves, the last one before
    the final norm. The hooks stand outside of blocks, so that compiled ones do not see them.
    """
    blocks, final_norm = body_blocks(body)
    states: dict[int, Tensor] = {}

    def keep(number: int, module: nn.Module, given: Any) -> None:
        """Keep what the module was given."""
        states[number] = given[0]

    readers = [*blocks, final_norm]
    hooks = [readers[number].register_forward_pre_hook(partial(keep, number)) for number in set(numbers)]
    try:
        final = body_hidden_states(body, input_ids)
        return final, tuple(states[number] for number in numbers)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def sublayer_records(
    model: PreTrainedModel, blocks: Sequence[TeacherBlock], input_ids: Int[Tensor, "batch time"], sublayers: Sublayers
) -> tuple[BlockRecord, ...]:
    """The records of the given blocks of a teacher, as tensors that a backward pass may keep."""
    seen: list[dict[str, dict[str, Tensor]]] = [{} for _ in blocks]
    with _watched(blocks, seen, sublayers):
        body_hidden_states(model.base_model, input_ids)
    return tuple(BlockRecord(**{part: SublayerRecord(**record) for part, record in parts.items()}) for parts in seen)


@contextmanager
def _watched(
    blocks: Sequence[TeacherBlock], seen: list[dict[str, dict[str, Tensor]]], sublayers: Sublayers
) -> Iterator[None]:
    hooks: list[RemovableHandle] = []
    for block, parts in zip(blocks, seen, strict=True):
        if sublayers != "feed_forward":
            hooks += _watch(block.mixer_norm, block.attention, parts.setdefault("attention", {}))
            middle = partial(_keep_first, parts["attention"], "found")
            hooks.append(_output_projection(block.attention).register_forward_pre_hook(middle))
        if sublayers != "mixers":
            hooks += _watch(block.feed_forward_norm, block.down, parts.setdefault("feed_forward", {}))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _watch(norm: nn.Module, last: nn.Module, record: dict[str, Tensor]) -> list[RemovableHandle]:
    """Hooks that keep what a sublayer's norm is given and what its last module returns."""

    def keep_output(module: nn.Module, given: Any, result: Any) -> None:
        """Keep what was returned, which attention accompanies with its weights."""
        record["output"] = result[0] if isinstance(result, tuple) else result

    return [
        norm.register_forward_pre_hook(partial(_keep_first, record, "stream")),
        last.register_forward_hook(keep_output),
    ]


def _keep_first(record: dict[str, Tensor], name: str, module: nn.Module, given: Any) -> None:
    record[name] = given[0]


def _output_projection(attention: Any) -> nn.Module:
    projection: nn.Module = attention.c_proj if hasattr(attention, "c_proj") else attention.o_proj
    return projection
