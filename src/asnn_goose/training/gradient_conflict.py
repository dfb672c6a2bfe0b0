"""Whether hidden alignment pulls the student elsewhere than its predictions do: the cosine of their two gradients."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.kernels.kd_loss import NOT_SCORED, distillation_sums
from asnn_goose.models.block import run_block
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.objectives.terms import Seen, matmul_dtype
from asnn_goose.training.feature_terms import FeatureTerms


def gradient_conflict(
    student: GooseForCausalLM,
    features: FeatureTerms,
    hidden: Float[Tensor, "batch time read_width"],
    stream: Sequence[Float[Tensor, "batch time teacher_width"]],
    input_ids: Int[Tensor, "batch time"],
    temperature: float | Float[Tensor, ""],
    chunk_tokens: int,
) -> Float[Tensor, ""] | None:
    """Cosine between the gradients of the KL and of the alignment error by all block outputs, taken as one vector.

    1 is the same direction, -1 the opposite one; 0 where a gradient is 0. None where nothing is aligned, or no block
    takes part in what is trained. No weight's gradient changes.

    Args:
        student: The model that learns.
        features: The objective's terms on hidden states.
        hidden: What the teacher's head reads.
        stream: Its states as `features.states` lists them.
        input_ids: Token ids of full rows.
        temperature: Of the KL.
        chunk_tokens: Tokens whose logits exist at one time.
    """
    if features.alignment is None:
        return None
    with torch.enable_grad(), _uncompiled(student):
        found = student.model(input_ids=input_ids, output_hidden_states=True)
        places = [state for state in found.hidden_states[1:] if state.requires_grad]
        if not places:
            return None
        tokens, device = input_ids.numel(), input_ids.device
        kl = distillation_sums(
            student_hidden=found.last_hidden_state.flatten(0, 1),
            student_head=LinearHead(student.lm_head.weight, student.lm_head.bias),
            teacher_hidden=hidden.flatten(0, 1),
            teacher_head=features.setting.head,
            labels=torch.full((tokens,), NOT_SCORED, device=device),
            valid=torch.ones(tokens, dtype=torch.bool, device=device),
            temperature=temperature,
            divergence_weight=1.0,
            cross_entropy_weight=0.0,
            chunk_tokens=chunk_tokens,
            matmul_dtype=matmul_dtype(device),
        ).loss
        shown = dict(zip(features.states, stream, strict=True))
        error = features.alignment.error(Seen(student, found, shown, hidden))
        # Sums over tokens: means would leave fp16 nothing but zeros.
        first, second = (_flat_gradient(term, places) for term in (kl, tokens * error))
    return functional.cosine_similarity(first, second, dim=0)


@contextmanager
def _uncompiled(student: GooseForCausalLM) -> Iterator[None]:
    """Within it blocks run as they are written: a compiled form would be made anew for these rows' shape."""
    before = student.model.block_runner
    student.model.block_runner = run_block
    try:
        yield
    finally:
        student.model.block_runner = before


def _flat_gradient(term: Tensor, places: list[Tensor]) -> Tensor:
    # Both terms share the graph, and the first backward pass must leave it whole.
    gradients = torch.autograd.grad(term, places, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(place) if part is None else part for place, part in zip(places, gradients, strict=True)]
    return torch.cat([part.flatten().float() for part in parts])
