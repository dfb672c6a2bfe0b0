"""Linear layers on a CPU by oneDNN, where torch's own take MKL: that one leaves other makers' vector units partly idle.

On an AMD EPYC (AVX-512, 2 cores) oneDNN takes 0.73 to 0.94 of the time (benchmarks/cpu_linear.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
"""What torch's compiler calls for the same purpose; without it layers stay as they are."""


@contextmanager
def onednn_linears(*models: nn.Module) -> Iterator[None]:
    """Within the block plain linear layers of float32 on a CPU multiply by oneDNN where no gradient is taken.

    Layers of other classes and those with a forward of their own, such as adapters', stay as they are; hooks see what
    they saw. Results differ from torch's by rounding.
    """
    given = []
    try:
        for layer in (module for model in models for module in model.modules()):
            if type(layer) is nn.Linear and _is_plain(layer):
                layer.forward = MethodType(_linear, layer)  # type: ignore[method-assign]
                given.append(layer)
        yield
    finally:
        for layer in given:
            del layer.forward


def _is_plain(layer: nn.Linear) -> bool:
    weight = layer.weight
    return "forward" not in vars(layer) and weight.device.type == "cpu" and weight.dtype == torch.float32


def _linear(layer: nn.Linear, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch columns"]:
    """`nn.Linear.forward`."""
    weight, bias = layer.weight, layer.bias
    if LINEAR is None or torch.is_grad_enabled() or x.dtype != weight.dtype or not x.numel():
        return functional.linear(x, weight, bias)
    product: Tensor = LINEAR(x, weight, bias, "none", [], "")
    return product
