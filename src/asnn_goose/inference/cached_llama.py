"""A Llama's forward pass over a cache of fixed size: what a step of sampling computes, with nothing repeated.

The queries that share a key head are one matrix product against it, where transformers first copies each key and
value for each query head it serves, and attention reads only the part of the cache that is filled.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from asnn_goose.errors import ModelError

SUPPORTED = (
    "supported are models with model_type=llama (Llama 2 and 3, SmolLM2, TinyLlama), hidden_act=silu, no biases in "
    "attention or MLP, and rotary frequencies that do not depend on the length"
)
LENGTH_DEPENDENT_ROTARY = ("dynamic", "longrope")


@dataclass(frozen=True)
class _Layer:
    attention_norm: Tensor
    query_key_value: Tensor
    output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor
    keys: Tensor  # rows key_heads positions head_width
    values: Tensor  # rows key_heads positions head_width


class CachedLlama:
    """A Llama's weights beside a cache of keys and values of a fixed size; all rows stand at the same place."""

    def __init__(self, model: PreTrainedModel, rows: int, positions: int) -> None:
        """Allocate the cache.

        Args:
            model: The language model; its weights are copied only where several are read as one.
            rows: Most rows at a time.
            positions: Most positions of a row, padding included.

        Raises:
            ModelError: The model is of no supported kind, or has fewer positions.
        """
        check_supported(model)
        config, rotary = model.config, model.model.rotary_emb
        if positions > config.max_position_embeddings:
            raise ModelError(
                f"{positions} positions are asked for and the model has {config.max_position_embeddings}: shorten the "
                "prompts or ask for fewer tokens"
            )
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_width = model.model.layers[0].self_attn.head_dim
        self.epsilon = config.rms_norm_eps
        self.embedding, self.head = model.model.embed_tokens.weight, model.lm_head.weight
        self.final_norm = model.model.norm.weight
        self.device, self.dtype = self.head.device, self.head.dtype
        self.inverse_frequencies = rotary.inv_freq.to(self.device, torch.float32)
        self.rotary_scale = float(rotary.attention_scaling)
        self.times = torch.arange(positions, device=self.device)
        shape = (rows, self.key_heads, positions, self.head_width)
        self.layers = [self._take_layer(layer, shape) for layer in model.model.layers]

    def _take_layer(self, layer: Any, shape: tuple[int, ...]) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        # Zeros, because attention gives places beyond the text the weight zero, and zero times NaN is NaN.
        keys, values = (torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in range(2))
        return _Layer(
            attention_norm=layer.input_layernorm.weight,
            query_key_value=torch.cat(projections).detach(),
            output=attention.o_proj.weight,
            mlp_norm=layer.post_attention_layernorm.weight,
            gate_up=torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)).detach(),
            down=mlp.down_proj.weight,
            keys=keys,
            values=values,
        )

    @torch.no_grad()
    def next_logits(
        self, tokens: Int[Tensor, "rows new"], places: Int[Tensor, " new"], first: Int[Tensor, " rows"], length: int
    ) -> Float[Tensor, "rows vocabulary"]:
        """Logits after the last of `tokens`, whose keys and values enter the cache at `places`.

        Args:
            tokens: Token ids, the same number for each row.
            places: Their positions in the cache, consecutive, padding counted.
            first: Position of each row's first token that is no padding.
            length: Positions of the cache that are read; more than the last place.
        """
        # rows new 1 half
        angles = (places - first[:, None])[..., None, None] * self.inverse_frequencies
        cosine, sine = angles.cos() * self.rotary_scale, angles.sin() * self.rotary_scale
        rotation = (torch.cat((cosine, cosine), -1).to(self.dtype), torch.cat((-sine, sine), -1).to(self.dtype))
        times = self.times[:length]
        visible = (times <= places[:, None]) & (times >= first[:, None, None])
        # rows 1 1 new length
        bias = torch.zeros_like(visible, dtype=self.dtype).masked_fill_(~visible, torch.finfo(self.dtype).min)
        bias = bias[:, None, None]
        hidden = functional.embedding(tokens, self.embedding)
        for layer in self.layers:
            hidden = hidden + self._attend(layer, self._norm(hidden, layer.attention_norm), places, rotation, bias)
            gate, up = functional.linear(self._norm(hidden, layer.mlp_norm), layer.gate_up).chunk(2, dim=-1)
            hidden = hidden + functional.linear(functional.silu(gate) * up, layer.down)
        return functional.linear(self._norm(hidden[:, -1], self.final_norm), self.head)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self.epsilon)

    def _attend(
        self, layer: _Layer, hidden: Tensor, places: Tensor, rotation: tuple[Tensor, Tensor], bias: Tensor
    ) -> Tensor:
        (rows, new, _), length = hidden.shape, bias.shape[-1]
        rotated_heads, grouped = self.heads + self.key_heads, rows * self.key_heads
        # rows new heads head_width
        mixed = functional.linear(hidden, layer.query_key_value).unflatten(-1, (-1, self.head_width))
        turned, (cosine, sine) = mixed[:, :, :rotated_heads], rotation
        turned = torch.addcmul(turned * cosine, turned.roll(self.head_width // 2, dims=-1), sine)
        layer.keys[:rows].index_copy_(2, places, turned[:, :, self.heads :].transpose(1, 2))
        layer.values[:rows].index_copy_(2, places, mixed[:, :, rotated_heads:].transpose(1, 2))
        keys, values = (cache[:rows, :, :length].flatten(0, 1) for cache in (layer.keys, layer.values))
        # The queries that share a key head: rows*key_heads group*new head_width
        queries = turned[:, :, : self.heads].unflatten(2, (self.key_heads, -1)).permute(0, 2, 3, 1, 4)
        scores = torch.bmm(queries.reshape(grouped, -1, self.head_width), keys.transpose(1, 2))
        scores = scores.view(rows, self.key_heads, -1, new, length)
        weights = torch.add(bias, scores, alpha=1 / math.sqrt(self.head_width)).softmax(dim=-1)
        heard = torch.bmm(weights.view(grouped, -1, length), values)
        # rows new key_heads group head_width
        heard = heard.view(rows, self.key_heads, -1, new, self.head_width).permute(0, 3, 1, 2, 4)
        return functional.linear(heard.reshape(rows, new, -1), layer.output)

    def take_rows(self, chosen: Int[Tensor, " chosen"], length: int) -> None:
        """Make rows `chosen` the first rows of the cache, in that order, up to position `length`."""
        for layer in self.layers:
            for cache in (layer.keys, layer.values):
                cache[: len(chosen), :, :length] = cache[:, :, :length][chosen]


def check_supported(model: PreTrainedModel) -> None:
    """Refuse a model that `CachedLlama` would compute wrongly.

    Raises:
        ModelError: The model is of no supported kind.
    """
    config = model.config
    if config.model_type != "llama":
        raise ModelError(f"cannot sample in batches from a model with model_type={config.model_type}; {SUPPORTED}")
    rotary = model.model.rotary_emb.rope_type
    if config.attention_bias or config.mlp_bias or config.hidden_act != "silu" or rotary in LENGTH_DEPENDENT_ROTARY:
        raise ModelError(
            f"cannot sample in batches from this Llama: attention_bias={config.attention_bias}, "
            f"mlp_bias={config.mlp_bias}, hidden_act={config.hidden_act}, rope_type={rotary}; {SUPPORTED}"
        )
