"""How hard each row is, by what student and teacher make of it, and the steps that come before it is measured."""

from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn
from torch.optim import AdamW

from asnn_goose.config_curriculum import ConfidenceDifficulty, Curriculum, DivergenceDifficulty, LossDifficulty
from asnn_goose.config_objective import Objective
from asnn_goose.config_temperature import FixedTemperature
from asnn_goose.data.batches import BatchPlan
from asnn_goose.data.shuffling import shuffled_places
from asnn_goose.data.tokens import TokenRows
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.teacher import Teacher, body_hidden_states
from asnn_goose.training.step import DistillationStep
from asnn_goose.training.work import observed

OF_PRETRAINING = 1_000_003
"""Added to the run's seed for the rows of pretraining, so that they are not the rows that are measured."""

Difficulty = DivergenceDifficulty | LossDifficulty | ConfidenceDifficulty


def pretrain(
    student: GooseForCausalLM,
    teacher: Teacher,
    trained: list[nn.Parameter],
    batches: BatchPlan,
    curriculum: Curriculum,
    accelerator: Accelerator,
) -> None:
    """Train weights on all rows as the curriculum's pretraining says; on every process alike."""
    options = curriculum.pretraining
    if options is None:
        return
    objective = Objective(temperature=FixedTemperature(value=options.temperature))
    step = DistillationStep(student, teacher.head, objective)
    optimizer = AdamW(trained, lr=options.learning_rate, weight_decay=options.weight_decay)
    device = accelerator.device
    scaler = torch.amp.GradScaler(device.type, enabled=accelerator.mixed_precision == "fp16")
    for number in range(options.steps):
        ids = batches.batch(number * options.batch_size).to(device)
        with accelerator.autocast():
            record = step(ids, observed(teacher, ids))
        scaler.scale(record.loss / record.tokens).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def pretraining_rows(rows: TokenRows, curriculum: Curriculum, seed: int) -> BatchPlan:
    """The rows of pretraining: all of the text's, shuffled."""
    size = 1 if curriculum.pretraining is None else curriculum.pretraining.batch_size
    return BatchPlan(rows, size, seed + OF_PRETRAINING)


def measured_rows(rows: int, batch_size: int, batches: int | None, seed: int) -> Int64[np.ndarray, " measured"]:
    """Which of a text's rows are measured, none twice: all, or those of the first batches that a run would draw."""
    measured = rows if batches is None else min(rows, batches * batch_size)
    return shuffled_places(rows, np.arange(measured, dtype=np.int64), seed)


@torch.no_grad()
def row_difficulties(
    student: GooseForCausalLM, teacher: Teacher, ids: Int[Tensor, "rows window"], difficulty: Difficulty
) -> Float[Tensor, " rows"]:
    """How hard each row is: a mean over its tokens, in nats or, for confidence, a share.

    The student is evaluated as for its perplexity: in its weights' own number type.
    """
    heads = LinearHead(student.lm_head.weight, student.lm_head.bias), teacher.head
    was_training = student.training
    student.eval()
    hidden = body_hidden_states(student.model, ids), teacher.hidden_states_uncompiled(ids)
    student.train(was_training)
    found = [
        _row_difficulty(own, others, row, difficulty)
        for row, own, others in zip(ids, *map(_logits, hidden, heads), strict=True)
    ]
    return torch.stack(found)


def _logits(hidden: Tensor, head: LinearHead) -> Iterator[Tensor]:
    """The logits of one row after the other."""
    for row in hidden:
        yield nn.functional.linear(row.to(head.weight.dtype), *head).float()


def _row_difficulty(student: Tensor, teacher: Tensor, row: Tensor, difficulty: Difficulty) -> Tensor:
    if isinstance(difficulty, DivergenceDifficulty):
        own, others = ((z / difficulty.temperature).log_softmax(dim=-1) for z in (student, teacher))
        divergence = (others.exp() * (others - own)).sum(dim=-1)
        return (divergence - own.gather(1, others.argmax(dim=-1, keepdim=True)).squeeze(1)).mean()
    logits = student if difficulty.of == "student" else teacher
    if isinstance(difficulty, LossDifficulty):
        return nn.functional.cross_entropy(logits[:-1], row[1:])
    return 1.0 - logits.softmax(dim=-1).amax(dim=-1).mean()
