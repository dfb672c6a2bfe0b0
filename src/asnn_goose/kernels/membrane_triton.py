"""A leaky membrane with soft reset and its reverse pass on an NVIDIA GPU: one kernel each way."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from asnn_goose.kernels.membrane_triton_kernels import fire_backward_kernel, fire_kernel

# As the scan's: one channel a thread, one warp a program; untuned. Fused multiply and add would round a potential
# otherwise than torch, and now and then fire another spike.
LAUNCH = {"block": 32, "tile": 16, "num_warps": 1, "num_stages": 1, "enable_fp_fusion": False}


def fire_triton(
    z: Float[Tensor, "batch time width"],
    membrane: Float[Tensor, "batch width"],
    valid: Bool[Tensor, "batch time"] | None,
    beta: float,
    levels: int,
    signed: bool,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
    """Spikes, potentials and the last membrane of `membrane_reference` with the staircase, without gradient; float32.

    Raises:
        ValueError: A dtype that the kernels are not written for.
    """
    _check(z, membrane)
    z, start = z.contiguous(), membrane.contiguous()
    values, potentials, last = torch.empty_like(z), torch.empty_like(z), torch.empty_like(start)
    with torch.cuda.device_of(z):
        fire_kernel[_grid(z)](
            z, start, _mask(z, valid), values, potentials, last, z.shape[1], beta, levels=levels, signed=signed,
            width=z.shape[2], masked=valid is not None, **LAUNCH,
        )  # fmt: skip
    return values, potentials, last


def fire_backward_triton(
    slopes: Float[Tensor, "batch time width"],
    arriving: Float[Tensor, "batch time width"],
    of_last: Float[Tensor, "batch width"],
    valid: Bool[Tensor, "batch time"] | None,
    beta: float,
    detach_reset: bool,
) -> tuple[Float[Tensor, "batch time width"], Float[Tensor, "batch width"]]:
    """The gradients of z and of the first membrane; see `spikes/membrane.py`.

    Raises:
        ValueError: A dtype that the kernels are not written for.
    """
    _check(slopes, arriving, of_last)
    slopes, arriving, of_last = slopes.contiguous(), arriving.contiguous(), of_last.contiguous()
    gradient, of_start = torch.empty_like(slopes), torch.empty_like(of_last)
    with torch.cuda.device_of(slopes):
        fire_backward_kernel[_grid(slopes)](
            slopes, arriving, of_last, _mask(slopes, valid), gradient, of_start, slopes.shape[1], beta,
            attached=not detach_reset, width=slopes.shape[2], masked=valid is not None, **LAUNCH,
        )  # fmt: skip
    return gradient, of_start


def _check(*tensors: Tensor) -> None:
    found = {tensor.dtype for tensor in tensors} - {torch.float32}
    if found:
        raise ValueError(f"the Triton membrane takes float32 tensors, got {found.pop()}: use the torch form")


def _grid(z: Tensor) -> tuple[int]:
    """A program for each row and block of channels."""
    batch, _, width = z.shape
    return (batch * -(-width // LAUNCH["block"]),)


def _mask(z: Tensor, valid: Tensor | None) -> Tensor:
    """The mask as bytes; an absent one is a placeholder that is never read."""
    return z if valid is None else valid.contiguous().view(torch.uint8)
