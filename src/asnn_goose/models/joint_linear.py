"""Linear layers of one input as one product: a GPU reads the input once, and wide products suit it better."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

LEAST_TOKENS = {"cuda": 2_048}
"""Tokens of an input from which on joining the weights costs less than it saves; other devices never join."""
ALIGNED_COLUMNS = 16
"""Columns are filled up to a multiple of these: rows then start at 16 bytes in any type, as Triton knows of no less."""


def joinable(x: Tensor, layers: Sequence[nn.Module | None]) -> bool:
    """Whether to join: many tokens on a GPU, and plain layers that nothing watches, since a hook is not called here."""
    if x.shape[:-1].numel() < LEAST_TOKENS.get(x.device.type, math.inf):
        return False
    present = [layer for layer in layers if layer is not None]
    return all(type(layer) is nn.Linear and not _watched(layer) for layer in present)


def joint_linear(
    x: Float[Tensor, "*batch width"], layers: Sequence[nn.Linear], scale: Float[Tensor, "*scale"] | None = None
) -> Float[Tensor, "*batch columns"]:
    """The layers' outputs side by side, then columns of zeros up to a multiple of 16.

    `scale` is a factor on the products, not on the biases.
    """
    weights = [layer.weight for layer in layers]
    spare = -sum(len(weight) for weight in weights) % ALIGNED_COLUMNS
    weight = torch.cat([*weights, weights[0].new_zeros(spare, weights[0].shape[1])])
    bias = None
    if any(layer.bias is not None for layer in layers):
        biases = [layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers]
        bias = torch.cat([*biases, weight.new_zeros(spare)])
    if scale is None:
        return functional.linear(x, weight, bias)
    product = functional.linear(x, weight)
    scaled = product * scale if bias is None else torch.addcmul(bias, product, scale)
    return scaled.to(product.dtype)


def _watched(layer: nn.Module) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks)
