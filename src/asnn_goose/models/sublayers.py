"""What a transformer computes on the way: its attention layer by layer, and its residual stream between blocks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from asnn_goose.models.anatomy import TeacherAnatomy, TeacherBlock
from asnn_goose.models.teacher import body_hidden_states


@dataclass(frozen=True)
class AttentionRecord:
    """One layer's attention in one forward pass.

    Attributes:
        given: Its normalized input.
        found: What the heads found, side by side, before the output projection.
        output: What it added to the residual stream.
    """

    given: Float[Tensor, "batch time width"]
    found: Float[Tensor, "batch time read"]
    output: Float[Tensor, "batch time width"]


class StreamRecorder:
    """Keeps what a model's residual stream holds where given norms read it, in every forward pass from now on.

    Its hooks stay with the model, so that a form compiled later has them inside.

    Args:
        norms: The norms, in the order in which the model calls them.
    """

    def __init__(self, norms: Sequence[nn.Module]) -> None:
        self._states: list[Tensor | None] = [None] * len(norms)
        for place, norm in enumerate(norms):
            norm.register_forward_pre_hook(self._keeper(place))

    def take(self) -> tuple[Float[Tensor, "batch time width"], ...]:
        """What the last forward pass left, and nothing kept of it afterwards."""
        states = tuple(state for state in self._states if state is not None)
        self._states[:] = [None] * len(self._states)
        return states

    def _keeper(self, place: int) -> Callable[[nn.Module, Any], None]:
        states = self._states

        def keep(module: nn.Module, given: Any) -> None:
            """Keep what the norm was given."""
            states[place] = given[0]

        return keep


def block_ends(anatomy: TeacherAnatomy, kept: Sequence[int]) -> tuple[nn.Module, ...]:
    """For each kept block the norm that first reads what it leaves: that of the next kept one, or the final norm."""
    following = [anatomy.blocks[index].mixer_norm for index in kept[1:]]
    return (*following, anatomy.final_norm)


@torch.no_grad()
def attention_records(
    model: PreTrainedModel, blocks: Sequence[TeacherBlock], input_ids: Int[Tensor, "batch time"]
) -> tuple[AttentionRecord, ...]:
    """The records of the given blocks of a teacher, as tensors that a backward pass may keep."""
    seen: list[dict[str, Tensor]] = [{} for _ in blocks]
    with _watched(blocks, seen):
        body_hidden_states(model.base_model, input_ids)
    return tuple(AttentionRecord(**record) for record in seen)


@contextmanager
def _watched(blocks: Sequence[TeacherBlock], seen: list[dict[str, Tensor]]) -> Iterator[None]:
    hooks = []
    for block, record in zip(blocks, seen, strict=True):

        def keep_ends(
            module: nn.Module, given: Any, named: Any, result: Any, record: dict[str, Tensor] = record
        ) -> None:
            """Keep what the attention was given and what it returned."""
            record["given"] = given[0] if given else named["hidden_states"]
            record["output"] = result[0] if isinstance(result, tuple) else result

        def keep_middle(module: nn.Module, given: Any, record: dict[str, Tensor] = record) -> None:
            """Keep what its output projection reads."""
            record["found"] = given[0]

        hooks.append(block.attention.register_forward_hook(keep_ends, with_kwargs=True))
        hooks.append(_output_projection(block.attention).register_forward_pre_hook(keep_middle))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _output_projection(attention: Any) -> nn.Module:
    projection: nn.Module = attention.c_proj if hasattr(attention, "c_proj") else attention.o_proj
    return projection
