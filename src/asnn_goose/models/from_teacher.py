"""Copies into a student what it shares with the transformer it is converted from."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from asnn_goose.errors import ConfigError
from asnn_goose.models.anatomy import AttentionParts, Projection, TeacherAnatomy, TeacherBlock, projection_of
from asnn_goose.models.goose_mixer import GooseMixer
from asnn_goose.models.student import GooseForCausalLM


def kept_layers(choice: Literal["all", "every_other"] | int | Sequence[int], of: int) -> list[int]:
    """Indices of the blocks to keep of `of`: all, every other, a number evenly spaced from first to last, or a list.

    Raises:
        ConfigError: More blocks than there are, or a list that is empty, out of range or not rising.
    """
    match choice:
        case "all":
            return list(range(of))
        case "every_other":
            return list(range(0, of, 2))
        case int():
            if choice > of:
                raise ConfigError(f"student.keep_layers={choice}, but the teacher has {of} blocks; keep at most these")
            return torch.linspace(0, of - 1, choice, dtype=torch.float64).round().int().tolist() if choice > 1 else [0]
    kept = list(choice)
    if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= of:
        raise ConfigError(f"student.keep_layers={kept}: give rising indices from 0 to {of - 1}, each once")
    return kept


@torch.no_grad()
def copy_from_teacher(student: GooseForCausalLM, anatomy: TeacherAnatomy, kept: Sequence[int]) -> None:
    """Copy embeddings, norms, feed-forward parts and head; and attention's projections where the mixer has their shape.

    `kept` are the teacher's blocks that the student's blocks take over. What a mixer has beyond the projections stays.
    """
    body = student.model
    _copy(anatomy.embedding, body.embed_tokens)
    if anatomy.position_embedding is not None and body.embed_positions is not None:
        _copy(anatomy.position_embedding, body.embed_positions)
    for block, index in zip(body.layers, kept, strict=True):
        _copy_block(anatomy.blocks[index], block)
    _copy(anatomy.final_norm, body.norm)
    if not student.config.tie_word_embeddings:
        _copy(anatomy.head, student.lm_head)


def _copy_block(source: TeacherBlock, target: Any) -> None:
    _copy(source.mixer_norm, target.mixer_norm)
    _copy(source.feed_forward_norm, target.feed_forward_norm)
    _copy(source.up, target.feed_forward.up)
    _copy(source.down, target.feed_forward.down)
    if source.gate is not None and target.feed_forward.gate is not None:
        _copy(source.gate, target.feed_forward.gate)
    if isinstance(target.mixer, GooseMixer):
        _copy_attention(source.parts, target.mixer)


def _copy_attention(parts: AttentionParts, mixer: GooseMixer) -> None:
    _copy(parts.query, mixer.receptance)
    _copy(parts.key, mixer.key)
    _copy(parts.value, mixer.value)
    _copy(parts.output, mixer.output)
    if parts.query_norm is not None and parts.key_norm is not None:
        _copy(parts.query_norm, mixer.receptance_norm)
        _copy(parts.key_norm, mixer.key_norm)


def _copy(source: Any, target: Any) -> None:
    given = source if isinstance(source, Projection) else projection_of(source)
    target.weight.copy_(given.weight)
    if getattr(target, "bias", None) is not None:
        if given.bias is None:
            target.bias.zero_()
        else:
            target.bias.copy_(given.bias)
