"""One chunk of the distillation loss on an NVIDIA GPU: what `kd_chunk.TorchRule` gives, in one kernel."""

import torch
from torch import Tensor

from asnn_goose.kernels.head_chunks import ChunkResult, ChunkSpace
from asnn_goose.kernels.kd_chunk import ChunkPlan
from asnn_goose.kernels.kd_triton_kernels import rows_kernel

# Words a program reads at a time: 8 warps of 32 lanes with two times 16 bytes of each model's logits.
BLOCK, WARPS = 2048, 8
LEAST_BLOCK = 16


class TritonRule:
    """The loss of a chunk in one Triton kernel, float32 statistics.

    Args:
        plan: What the loss is; it has a teacher.
        space: Sizes, number types and what is asked for.
    """

    def __init__(self, plan: ChunkPlan, space: ChunkSpace) -> None:
        self.plan, self.space = plan, space
        self.gradient = space.empty(space.operand)
        self.figures = torch.empty(space.tokens, 3, dtype=torch.float32, device=space.device)
        self.temperature, self.divergence_weight, self.cross_entropy_weight = (
            torch.full((), number, dtype=torch.float32, device=space.device)
            if isinstance(number, float | int)
            else number.detach().float()
            for number in (plan.temperature, plan.divergence_weight, plan.cross_entropy_weight)
        )
        self.block = min(BLOCK, max(LEAST_BLOCK, 1 << (space.vocabulary - 1).bit_length()))

    def __call__(self, rows: slice, student: Tensor, teacher: Tensor | None) -> ChunkResult:
        """Sums over the chunk, and the gradient at the student's logits."""
        if teacher is None:
            raise ValueError("the Triton distillation loss compares two models' logits, got one; use the torch backend")
        plan, space = self.plan, self.space
        gradient, figures = self.gradient[: len(student)], self.figures[: len(student)]
        with torch.cuda.device_of(student):
            rows_kernel[(len(student),)](
                student, teacher, gradient, plan.labels[rows], plan.valid[rows], plan.scored[rows], figures,
                self.temperature, space.vocabulary, student.stride(0), teacher.stride(0), gradient.stride(0),
                self.divergence_weight, self.cross_entropy_weight, plan.divergence.share, kind=plan.divergence.kind,
                power=plan.divergence.power, block=self.block, wants_gradient=space.gradient_wanted,
                wants_slope=space.slope_wanted, num_warps=WARPS,
            )  # fmt: skip
        divergence, cross_entropy, slope = figures.sum(dim=0).unbind()
        factor = plan.divergence_weight * self.temperature**plan.divergence.power
        loss = factor * divergence + plan.cross_entropy_weight * cross_entropy
        return ChunkResult(
            loss,
            torch.stack((divergence, cross_entropy)),
            gradient if space.gradient_wanted else None,
            slope if space.slope_wanted else None,
        )
