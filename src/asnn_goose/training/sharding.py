"""A student whose weights, gradients and moments FSDP2 shares out among processes.

(ZeRO-3, Rajbhandari et al. 2020.) Each mixer, each feed-forward part, and the embeddings together with the head are
units: their weights are gathered where they compute, their gradients averaged into shards.
"""

from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.export
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm
from torch.optim import AdamW

from asnn_goose.errors import ConfigError
from asnn_goose.models.block import GooseBlock
from asnn_goose.models.mixers import MixerOutput
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.training.step import StepRecord

Found = TypeVar("Found")


class ShardedStudent(nn.Module):
    """The root of a sharded student: inside its forward the embeddings and the head are gathered.

    The head has to be, since the loss multiplies by its weight without calling it.

    Args:
        student: The student, its mixers and feed-forward parts already units of their own.
    """

    def __init__(self, student: GooseForCausalLM) -> None:
        super().__init__()
        self.student = student

    def forward(self, act: Callable[..., Found], *arguments: Any) -> Found:
        """What `act` gives, which may use any part of the student."""
        return act(*arguments)


def shard_student(student: GooseForCausalLM, accelerator: Accelerator) -> ShardedStudent | None:
    """Share a student's weights out among all processes, in place; None where one process has it all.

    Sharded are the weights of projections and embeddings. Under bf16, those of blocks are gathered as bf16, which is
    what autocast makes of them on one process too. All else is small and stays whole, in float32, on every process:
    FSDP2 takes no scalars, and autocast leaves norms, taps and thresholds as they are.

    Raises:
        ConfigError: The precision is fp16, whose gradient scaler does not look across shards.
    """
    if accelerator.num_processes == 1:
        return None
    if accelerator.mixed_precision == "fp16":
        raise ConfigError("training.sharding=fsdp2 does not go with fp16: use training.precision=bf16 or fp32")
    for parameter in student.parameters():
        distributed.broadcast(parameter.detach(), src=0)
    _show_tensors_to_hooks()
    root, device = ShardedStudent(student), accelerator.device
    mesh = init_device_mesh(device.type, (accelerator.num_processes,))
    small = set(student.parameters()) - _large_weights(student)
    types = (torch.bfloat16, torch.float32) if accelerator.mixed_precision == "bf16" else (None, None)
    policy = MixedPrecisionPolicy(param_dtype=types[0], reduce_dtype=types[1], cast_forward_inputs=False)
    for block in cast(Iterable[GooseBlock], student.model.layers):
        for part in (block.mixer, block.feed_forward):
            fully_shard(part, mesh=mesh, mp_policy=policy, ignored_params=small)
    fully_shard(root, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False), ignored_params=small)
    for unit in _units(root):
        # gloo sums, but knows no mean.
        unit.set_force_sum_reduction_for_comms(device.type == "cpu")
        # What is gathered for the first time in inference mode would be of no use to gradients afterwards.
        unit.unshard()
        unit.reshard()
    # The first forward settles the number types of gradients, for which every weight must still be free to learn.
    root(lambda: None)
    reshard(root)
    return root


def reshard(root: ShardedStudent) -> None:
    """Share out again what the root gathered for a backward pass that does not come."""
    cast(FSDPModule, root).reshard()


@contextmanager
def without_averaging(root: ShardedStudent) -> Iterator[None]:
    """Within the block, backward passes add up the gradients of each process alone."""
    unit = cast(FSDPModule, root)
    unit.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        unit.set_requires_gradient_sync(True)


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor with all its shards, which all processes gather together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(stored: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, sharded as another is, on that one's device."""
    stored = stored.to(tensor.device)
    if not isinstance(tensor, DTensor):
        return stored
    # Every process has read the whole: none needs to be sent anything.
    return distribute_tensor(stored, tensor.device_mesh, tensor.placements, src_data_rank=None)


@torch.no_grad()
def clip_shards(parameters: Iterable[nn.Parameter], limit: float, apart: Set[nn.Parameter] = frozenset()) -> Tensor:
    """As `clip_grad_norm_`, for weights some of which are shards; the gradients of the others are averaged here first.

    FSDP2 averages only what it shards. Whole weights that stand `apart` are averaged too, but neither counted nor
    scaled.
    """
    found = [(parameter in apart, parameter.grad) for parameter in parameters if parameter.grad is not None]
    shards = [gradient.to_local() for _, gradient in found if isinstance(gradient, DTensor)]
    averaged = [gradient for _, gradient in found if not isinstance(gradient, DTensor)]
    whole = [gradient for is_apart, gradient in found if not (is_apart or isinstance(gradient, DTensor))]
    square = (whole or shards)[0].new_zeros(())
    if shards:
        square += get_total_norm(shards).square()
        distributed.all_reduce(square)
    if averaged:
        _average(averaged)
    if whole:
        square += get_total_norm(whole).square()
    norm = square.sqrt()
    torch._foreach_mul_([*shards, *whole], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def part_groups(optimizer: AdamW) -> None:
    """Split each parameter group into shards and whole weights: a fused update takes one kind at a time."""
    optimizer.param_groups = [
        {**group, "params": members}
        for group in optimizer.param_groups
        for members in (
            [p for p in group["params"] if isinstance(p, DTensor)],
            [p for p in group["params"] if not isinstance(p, DTensor)],
        )
        if members
    ]


def _average(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _large_weights(student: GooseForCausalLM) -> set[nn.Parameter]:
    holders = (nn.Linear, nn.Embedding)
    return {cast(nn.Parameter, module.weight) for module in student.modules() if isinstance(module, holders)}


def _units(root: ShardedStudent) -> Iterator[FSDPModule]:
    return (module for module in root.modules() if isinstance(module, FSDPModule))


@cache
def _show_tensors_to_hooks() -> None:
    """FSDP2's hooks find the tensors that a unit returns in tuples and mappings, and in dataclasses that are named."""
    for kind in (MixerOutput, StepRecord):
        torch.export.register_dataclass(kind)
