"""Reads a pretrained transformer as parts with one name each, whatever its family.

Supported are GPT-2's family, whose linear layers are stored transposed, and Llama's: Llama, SmolLM2, Mistral, Qwen2
and Qwen3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from asnn_goose.errors import TeacherError

LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3")
GPT2_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Projection:
    """A linear map: weight [out in] and bias [out], or None."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class AttentionParts:
    """What a block's attention multiplies with.

    Attributes:
        query: Projection to queries.
        key: To keys.
        value: To values.
        output: From what the heads found back to the residual stream.
        query_norm: Norm of a query head, if it has one.
        key_norm: Norm of a key head.
    """

    query: Projection
    key: Projection
    value: Projection
    output: Projection
    query_norm: nn.Module | None = None
    key_norm: nn.Module | None = None


@dataclass(frozen=True)
class HeadShape:
    """Attention's sizes and positions.

    Attributes:
        heads: Query heads.
        key_value_heads: Heads of keys and values.
        head_width: Channels of a head.
        rotary_frequencies: Radians a token for each pair of channels, where attention turns by position.
        rotary_scaling: Factor on what it turned.
    """

    heads: int
    key_value_heads: int
    head_width: int
    rotary_frequencies: tuple[float, ...] | None = None
    rotary_scaling: float = 1.0


@dataclass(frozen=True)
class TeacherBlock:
    """The modules of one transformer block that a student can take over.

    Attributes:
        mixer_norm: Norm before attention.
        attention: The attention module.
        parts: Its weights.
        feed_forward_norm: Norm before the feed-forward part.
        up: First projection of the feed-forward part.
        gate: Its gate, for SwiGLU.
        down: Its second projection.
    """

    mixer_norm: nn.Module
    attention: nn.Module
    parts: AttentionParts
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
        heads: Attention's sizes and positions.
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
    heads: HeadShape
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
    config = model.config
    described = f"{config.model_type} model"
    if config.model_type == "gpt2":
        if config.activation_function in GPT2_ACTIVATIONS:
            return _gpt2_anatomy(model)
        described += f" with activation {config.activation_function}"
    elif config.model_type in LLAMA_FAMILY:
        if config.hidden_act == "silu":
            return _llama_anatomy(model)
        described += f" with activation {config.hidden_act}"
    raise TeacherError(
        f"{name} is a {described}: shape and weights are taken over from gpt2, {', '.join(LLAMA_FAMILY)} with their "
        "usual activation; take one of these, or student.mixer=wkv student.initialization=random"
    )


def body_blocks(body: Any) -> tuple[Sequence[nn.Module], nn.Module]:
    """The blocks of a supported transformer's body, first to last, and its final norm."""
    if body.config.model_type == "gpt2":
        return body.h, body.ln_f
    return body.layers, body.norm


def learned_positions(model: PreTrainedModel) -> int | None:
    """Tokens for which a model of any architecture has learned positions; None where it computes them."""
    # A model without learned or rotary positions, such as Bloom, states no limit.
    limit = getattr(model.config, "max_position_embeddings", None)
    tokens = model.get_input_embeddings()
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding) and module is not tokens]
    # OPT and BioGPT keep two rows in front of the first position.
    return limit if limit and any(table.num_embeddings in (limit, limit + 2) for table in tables) else None


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
        tie_head=model.lm_head.weight is body.wte.weight,
        heads=HeadShape(config.n_head, config.n_head, config.n_embd // config.n_head),
        embedding=body.wte,
        position_embedding=body.wpe,
        blocks=[
            TeacherBlock(
                block.ln_1, block.attn, _gpt2_attention(block.attn), block.ln_2, block.mlp.c_fc, None, block.mlp.c_proj
            )
            for block in body.h
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
        tie_head=model.lm_head.weight is body.embed_tokens.weight,
        heads=_llama_heads(body),
        embedding=body.embed_tokens,
        position_embedding=None,
        blocks=[
            TeacherBlock(
                block.input_layernorm, block.self_attn, _llama_attention(block.self_attn),
                block.post_attention_layernorm, block.mlp.up_proj, block.mlp.gate_proj, block.mlp.down_proj,
            )
            for block in body.layers
        ],
        final_norm=body.norm,
        head=model.lm_head,
    )  # fmt: skip


def _gpt2_attention(attention: Any) -> AttentionParts:
    joined = projection_of(attention.c_attn)
    weights, biases = joined.weight.chunk(3), joined.bias.chunk(3)  # type: ignore[union-attr]
    query, key, value = (Projection(weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return AttentionParts(query, key, value, projection_of(attention.c_proj))


def _llama_attention(attention: Any) -> AttentionParts:
    return AttentionParts(
        projection_of(attention.q_proj), projection_of(attention.k_proj), projection_of(attention.v_proj),
        projection_of(attention.o_proj), getattr(attention, "q_norm", None), getattr(attention, "k_norm", None),
    )  # fmt: skip


def _llama_heads(body: Any) -> HeadShape:
    config, rotary = body.config, body.rotary_emb
    return HeadShape(
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        head_width=body.layers[0].self_attn.head_dim,
        rotary_frequencies=tuple(rotary.inv_freq.double().tolist()),
        rotary_scaling=float(rotary.attention_scaling),
    )


def projection_of(module: Any) -> Projection:
    """A module's weight, of a linear layer as [out in] whichever way it is stored, and its bias if it has one."""
    return Projection(module.weight.T if isinstance(module, Conv1D) else module.weight, getattr(module, "bias", None))
