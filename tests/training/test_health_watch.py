import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import AdamW

from asnn_goose.data.tokens import TokenRows
from asnn_goose.evaluation.perplexity import EvaluationWindows
from asnn_goose.models.build import build_student
from asnn_goose.models.teacher import Teacher
from asnn_goose.training.distill import RunOutcome
from asnn_goose.training.health_watch import MOST_MATRICES, HealthWatch, update_to_weight


def optimizer_after(steps: int, matrices: int, decay: float = 0.1) -> tuple[AdamW, list[float]]:
    """An optimizer that took some steps, and by how much its last one moved each matrix."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, 4, dtype=torch.float64)) for _ in range(matrices)]
    optimizer = AdamW([*weights, nn.Parameter(torch.ones(4))], lr=1e-4, weight_decay=decay, betas=(0.8, 0.9))
    before = [weight.detach().clone() for weight in weights]
    for _ in range(steps):
        before = [weight.detach().clone() for weight in weights]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    pairs = zip(weights, before, strict=True)
    return optimizer, [float((new.detach() - old).norm() / old.norm()) for new, old in pairs]


@pytest.mark.parametrize(("steps", "decay"), [(1, 0.0), (1, 5.0), (4, 0.1)])
def test_the_moments_tell_how_far_the_last_step_went(steps: int, decay: float) -> None:
    optimizer, moved = optimizer_after(steps, matrices=3, decay=decay)
    assert update_to_weight(optimizer) == pytest.approx(np.mean(moved), rel=1e-3)


def test_of_many_matrices_some_are_measured_from_first_to_last() -> None:
    optimizer, moved = optimizer_after(2, matrices=2 * MOST_MATRICES)
    assert update_to_weight(optimizer) == pytest.approx(np.mean(moved[::2]), rel=1e-3)


def test_before_the_first_step_nothing_has_moved_and_nothing_is_left_behind() -> None:
    optimizer = AdamW([nn.Parameter(torch.ones(2, 2))])
    assert update_to_weight(optimizer) is None
    assert len(optimizer.state) == 0


def watch(teacher: Teacher, student: object) -> HealthWatch:
    rows = TokenRows(np.arange(640) % 4000, window=32, stride=32)
    material = SimpleNamespace(teacher=teacher, student=student, windows=EvaluationWindows(rows, "standard", ""))
    return HealthWatch(material, SimpleNamespace(look=lambda act, *arguments: act(*arguments)))


def test_the_gap_is_held_out_less_the_last_training_loss_and_absent_before_one(teacher: Teacher, small_recipe) -> None:
    recipe = small_recipe()
    watched = watch(teacher, build_student(recipe.student, recipe.spikes, teacher, seed=0).train())
    first = watched.evaluation(5.0)
    assert "train_validation_gap_nats" not in first
    watched.interval(AdamW([nn.Parameter(torch.ones(1))]), {"cross_entropy_nats": 4.5})
    watched.interval(AdamW([nn.Parameter(torch.ones(1))]), {"kl_nats": 1.0})
    assert watched.evaluation(5.0) == {"train_validation_gap_nats": 0.5, **first}
    assert watched.material.student.training


def test_agreement_with_the_teacher_is_that_of_its_plain_logits(teacher: Teacher, small_recipe) -> None:
    recipe = small_recipe()
    student = build_student(recipe.student, recipe.spikes, teacher, seed=0).eval()
    watched = watch(teacher, student)
    ids = watched.material.windows.probe(4096)
    with torch.no_grad():
        q, p = (model(input_ids=ids).logits.double().log_softmax(-1) for model in (student, teacher.model))
    found = watched.evaluation(0.0)
    assert found["held_out_kl_nats"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-5)
    assert found["top1_agreement"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()), abs=2e-3)


def test_a_run_logs_its_health_where_it_belongs(finished_run: RunOutcome) -> None:
    metrics = finished_run.folder.metrics()
    intervals = [line for line in metrics if "gradient_norm" in line]
    assert all(0.0 < line["update_to_weight"] < 1.0 for line in intervals)
    evaluations = [line for line in metrics if "evaluation_loss_nats" in line]
    assert all(0.0 <= line["top1_agreement"] <= 1.0 and line["held_out_kl_nats"] > 0.0 for line in evaluations)
    last = evaluations[-1]["evaluation_loss_nats"] - intervals[-1]["cross_entropy_nats"]
    assert math.isclose(evaluations[-1]["train_validation_gap_nats"], last, rel_tol=1e-9)
