"""Reads a pretrained transformer in one form, whatever its family, and copies what fits into a student.

Supported are GPT-2's family, whose linear layers are stored transposed, and Llama's: Llama, SmolLM2, Mistral, Qwen2
and Qwen3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from asnn_goose.errors import TeacherError
from asnn_goose.models.student import GooseForCausalLM

LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3")
GPT2_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class TeacherBlock:
    """The modules of one transformer block that a student can take over.

    Attributes:
        mixer_norm: Norm before attention.
        attention: The attention module.
        feed_forward_norm: Norm before the feed-forward part.
        up: First projection of the feed-forward part.
        gate: Its gate, for SwiGLU.
        down: Its second projection.
    """

    mixer_norm: nn.Module
    attention: nn.Module
    feed_forward_norm: nn.Module
    up: nn.Module
    gate: nn.Module | None
    down: nn.Module


@dataclass(frozen=True)
class TeacherAnatomy:
    """A transformer's modules by their part, and the choices of a student that fits them.

    Attributes:
        width: Width of the residual stream.
        feedforward_width: Inner width of the feed-forward part.
        norm: Kind of all norms.
        norm_eps: Constant under their square root.
        mlp: Feed-forward form.
        mlp_bias: Whether its projections have biases.
        positions: `learned`, or `none` where attention itself turns by position.
        max_positions: Longest sequence, in tokens.
        tie_head: Whether the token embedding is the output head.
        embedding: Token embedding.
        position_embedding: Learned positions, if it has them.
        blocks: Its blocks, first to last.
        final_norm: Norm before the head.
        head: Output head.
    """

    width: int
    feedforward_width: int
    norm: Literal["layernorm", "rmsnorm"]
    norm_eps: float
    mlp: Literal["gelu", "swiglu"]
    mlp_bias: bool
    positions: Literal["learned", "none"]
    max_positions: int
    tie_head: bool
    embedding: nn.Module
    position_embedding: nn.Module | None
    blocks: Sequence[TeacherBlock]
    final_norm: nn.Module
    head: nn.Module


def teacher_anatomy(model: PreTrainedModel, name: str) -> TeacherAnatomy:
    """The parts of a supported transformer.

    Raises:
        TeacherError: Its architecture, or its activation, is none that a student can take over.
    """
    kind = model.config.model_type
    if kind == "gpt2" and model.config.activation_function in GPT2_ACTIVATIONS:
        return _gpt2_anatomy(model)
    if kind in LLAMA_FAMILY and model.config.hidden_act == "silu":
        return _llama_anatomy(model)
    raise TeacherError(
        f"{name} is a {kind} model: weights are taken over from gpt2, {', '.join(LLAMA_FAMILY)}, with their usual "
        "activation; take one of these, or student.initialization=random"
    )


def _gpt2_anatomy(model: Any) -> TeacherAnatomy:
    config, body = model.config, model.transformer
    return TeacherAnatomy(
        width=config.n_embd,
        feedforward_width=body.h[0].mlp.c_fc.nf,
        norm="layernorm",
        norm_eps=config.layer_norm_epsilon,
        mlp="gelu",
        mlp_bias=True,
        positions="learned",
        max_positions=config.n_positions,
        tie_head=config.tie_word_embeddings,
        embedding=body.wte,
        position_embedding=body.wpe,
        blocks=[
            TeacherBlock(block.ln_1, block.attn, block.ln_2, block.mlp.c_fc, None, block.mlp.c_proj) for block in body.h
        ],
        final_norm=body.ln_f,
        head=model.lm_head,
    )


def _llama_anatomy(model: Any) -> TeacherAnatomy:
    config, body = model.config, model.model
    return TeacherAnatomy(
        width=config.hidden_size,
        feedforward_width=config.intermediate_size,
        norm="rmsnorm",
        norm_eps=config.rms_norm_eps,
        mlp="swiglu",
        mlp_bias=body.layers[0].mlp.up_proj.bias is not None,
        positions="none",
        max_positions=config.max_position_embeddings,
        tie_head=config.tie_word_embeddings,
        embedding=body.embed_tokens,
        position_embedding=None,
        blocks=[
            TeacherBlock(
                block.input_layernorm, block.self_attn, block.post_attention_layernorm,
                block.mlp.up_proj, block.mlp.gate_proj, block.mlp.down_proj,
            )
            for block in body.layers
        ],
        final_norm=body.norm,
        head=model.lm_head,
    )  # fmt: skip


def kept_layers(layers: int, of: int) -> list[int]:
    """Indices of `layers` blocks, evenly spaced from the first to the last of `of`."""
    return torch.linspace(0, of - 1, layers).round().int().tolist() if layers > 1 else [0]


@torch.no_grad()
def copy_from_teacher(student: GooseForCausalLM, anatomy: TeacherAnatomy) -> None:
    """Copy embeddings, norms, feed-forward parts and head; mixers keep what they have.

    A student with fewer blocks takes evenly spaced ones.
    """
    body = student.model
    _copy(anatomy.embedding, body.embed_tokens)
    if anatomy.position_embedding is not None and body.embed_positions is not None:
        _copy(anatomy.position_embedding, body.embed_positions)
    chosen = kept_layers(len(body.layers), len(anatomy.blocks))
    for block, index in zip(body.layers, chosen, strict=True):
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


def _copy(source: Any, target: Any) -> None:
    weight: Tensor = source.weight.T if isinstance(source, Conv1D) else source.weight
    target.weight.copy_(weight)
    if getattr(target, "bias", None) is not None:
        target.bias.copy_(source.bias)
