"""The entropy of a teacher's softened distribution, which rises with the temperature: soft targets say more."""

import torch
from jaxtyping import Float
from torch import Tensor

from asnn_goose.kernels.head_chunks import ChunkResult, ChunkSpace, HeadLoss, LinearHead, Rule, head_loss


def softened_entropy(
    hidden: Float[Tensor, "tokens width"],
    head: LinearHead,
    temperature: Float[Tensor, ""],
    chunk_tokens: int,
    matmul_dtype: torch.dtype | None = None,
) -> Float[Tensor, ""]:
    """The entropy of softmax(logits / T) in nats, summed over tokens, differentiable by T alone.

    With v = logits / T its derivative by T is the variance of v under that distribution, over T.
    """

    def build(space: ChunkSpace) -> Rule:
        """What computes a chunk."""

        def rule(rows: slice, logits: Tensor, teacher: Tensor | None) -> ChunkResult:
            """Entropy of a chunk, and its slope."""
            log_softmax = (logits / temperature).log_softmax(dim=-1)
            probability = log_softmax.exp()
            entropy = -(probability * log_softmax).sum(dim=-1, keepdim=True)
            # log p differs from v by a constant.
            slope = (probability * (log_softmax + entropy).square()).sum() / temperature
            return ChunkResult(entropy.sum(), logits.new_zeros(0), None, slope)

        return rule

    read = torch.ones(len(hidden), 1, dtype=torch.bool, device=hidden.device)
    frozen = LinearHead(head.weight.detach(), None if head.bias is None else head.bias.detach())
    return head_loss(hidden.detach(), frozen, None, temperature, HeadLoss(read, chunk_tokens, matmul_dtype, build, 0))[
        0
    ]
