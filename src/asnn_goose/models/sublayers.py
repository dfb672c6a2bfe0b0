"""What a transformer computes on the way: its attention layer by layer, and its residual stream between blocks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from asnn_goose.models.anatomy import TeacherBlock, body_blocks
from asnn_goose.models.teacher import body_hidden_states


@dataclass(frozen=True)
class AttentionRecord:
    """One layer's attention in one forward pass.

    Attributes:
        given: Its input, normalized by the norm that the record was made with.
        found: What the heads found, side by side, before the output projection.
        output: What it added to the residual stream.
    """

    given: Float[Tensor, "batch time width"]
    found: Float[Tensor, "batch time read"]
    output: Float[Tensor, "batch time width"]


def residual_stream(
    body: nn.Module, kept: Sequence[int], input_ids: Int[Tensor, "batch time"]
) -> tuple[Float[Tensor, "batch time width"], tuple[Float[Tensor, "batch time width"], ...]]:
    """What a body's head reads, and its residual stream where each kept block's stretch ends.

    A stretch reaches from a kept block to the next one, the last to the final norm. The hooks stand outside of blocks,
    so that compiled ones do not see them.
    """
    blocks, final_norm = body_blocks(body)
    states: list[Tensor] = []

    def keep(module: nn.Module, given: Any) -> None:
        """Keep what the module was given."""
        states.append(given[0])

    readers = [*(blocks[index] for index in kept[1:]), final_norm]
    hooks = [reader.register_forward_pre_hook(keep) for reader in readers]
    try:
        return body_hidden_states(body, input_ids), tuple(states)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def attention_records(
    model: PreTrainedModel,
    blocks: Sequence[TeacherBlock],
    norms: Sequence[nn.Module],
    input_ids: Int[Tensor, "batch time"],
) -> tuple[AttentionRecord, ...]:
    """The records of the given blocks of a teacher, as tensors that a backward pass may keep.

    `norms` stand before the mixers that learn from it, one a block: a mixer is given what its own norm makes of the
    teacher's residual stream, since its norm and projections may scale channels in another way than the teacher's.
    """
    seen: list[dict[str, Tensor]] = [{} for _ in blocks]
    with _watched(blocks, norms, seen):
        body_hidden_states(model.base_model, input_ids)
    return tuple(AttentionRecord(**record) for record in seen)


@contextmanager
def _watched(
    blocks: Sequence[TeacherBlock], norms: Sequence[nn.Module], seen: list[dict[str, Tensor]]
) -> Iterator[None]:
    hooks = []
    for block, norm, record in zip(blocks, norms, seen, strict=True):

        def keep_given(module: nn.Module, given: Any, norm: Any = norm, record: dict[str, Tensor] = record) -> None:
            """Keep what the mixer would be given here."""
            record["given"] = norm(given[0].to(norm.weight.dtype)).to(given[0].dtype)

        def keep_output(module: nn.Module, given: Any, result: Any, record: dict[str, Tensor] = record) -> None:
            """Keep what the attention returned."""
            record["output"] = result[0] if isinstance(result, tuple) else result

        def keep_middle(module: nn.Module, given: Any, record: dict[str, Tensor] = record) -> None:
            """Keep what its output projection reads."""
            record["found"] = given[0]

        hooks.append(block.mixer_norm.register_forward_pre_hook(keep_given))
        hooks.append(block.attention.register_forward_hook(keep_output))
        hooks.append(_output_projection(block.attention).register_forward_pre_hook(keep_middle))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _output_projection(attention: Any) -> nn.Module:
    projection: nn.Module = attention.c_proj if hasattr(attention, "c_proj") else attention.o_proj
    return projection
