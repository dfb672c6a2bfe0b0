import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional

from asnn_goose.config_curriculum import ConfidenceDifficulty, Curriculum, DivergenceDifficulty, LossDifficulty
from asnn_goose.config_student import Spikes, WkvStudent
from asnn_goose.data.tokens import TokenRows
from asnn_goose.models.build import build_student
from asnn_goose.training.difficulty import measured_rows, pretrain, pretraining_rows, row_difficulties

# Float32 sums over a thousand words in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
# A hundredth of a step: Adam divides a gradient near 0 by its own size.
NEAR = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture(scope="module")
def student(teacher):
    options = WkvStudent(width=16, layers=1, max_positions=64)
    return build_student(options, Spikes(), teacher, 0)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 1000, (3, 12), generator=torch.Generator().manual_seed(0))


def by_definition(student, teacher, ids, difficulty):
    """Of full logits, in float64."""
    own, others = student(ids).logits.double(), teacher.model(ids).logits.double()
    if isinstance(difficulty, DivergenceDifficulty):
        log_p, log_q = ((z / difficulty.temperature).log_softmax(-1) for z in (others, own))
        divergence = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        top = -log_q.gather(-1, others.argmax(-1, keepdim=True)).squeeze(-1)
        return (divergence + top).mean(1)
    logits = own if difficulty.of == "student" else others
    if isinstance(difficulty, LossDifficulty):
        losses = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return losses.view(len(ids), -1).mean(1)
    return 1 - logits.softmax(-1).max(-1).values.mean(1)


@pytest.mark.parametrize(
    "difficulty",
    [DivergenceDifficulty(), DivergenceDifficulty(temperature=2.0),
     *(kind(kind=name, of=of) for kind, name in ((LossDifficulty, "loss"), (ConfidenceDifficulty, "confidence"))
       for of in ("student", "teacher"))],
)  # fmt: skip
@torch.no_grad()
def test_a_rows_difficulty_is_that_of_its_full_logits(student, teacher, ids, difficulty):
    student.eval()
    expected = by_definition(student, teacher, ids, difficulty)
    student.train()
    found = row_difficulties(student, teacher, ids, difficulty)
    torch.testing.assert_close(found.double(), expected, **CLOSE)
    assert student.training


def test_pretraining_is_plain_adamw_on_the_divergence(student, teacher):
    rows = TokenRows(tokens=np.random.default_rng(0).integers(0, 1000, 400).astype(np.uint16), window=8, stride=8)
    curriculum = Curriculum(pretraining={"steps": 2, "batch_size": 3, "learning_rate": 1e-2})
    ours, theirs = copy.deepcopy(student), copy.deepcopy(student)
    batches = pretraining_rows(rows, curriculum, seed=1)
    pretrain(ours, teacher, list(ours.parameters()), batches, curriculum, Accelerator(cpu=True))
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.01)
    for seen in (0, 3):
        ids = batches.batch(seen)
        log_q = (theirs(ids).logits / 2).log_softmax(-1)
        p = (teacher.model(ids).logits / 2).softmax(-1).detach()
        (4 * functional.kl_div(log_q, p, reduction="none").sum(-1).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(ours.lm_head.weight, theirs.lm_head.weight, **NEAR)


def test_measured_rows_are_those_of_so_many_batches_or_all_and_none_twice():
    assert len(set(measured_rows(1000, 8, 50, seed=0).tolist())) == 400
    for batches in (50, None):
        assert sorted(measured_rows(30, 8, batches, seed=0).tolist()) == list(range(30))
