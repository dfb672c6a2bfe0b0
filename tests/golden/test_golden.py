"""Law 9: the first losses of a tiny recipe on the pocket teacher are those that were written down.

python tests/golden/test_golden.py     writes them down anew, after a change that is meant to change them
"""

import json
from pathlib import Path

import pytest
import torch

from asnn_goose.config import Recipe
from asnn_goose.data.batches import BatchPlan
from asnn_goose.data.pocket import pocket_documents
from asnn_goose.data.tokens import tokenize_documents, training_rows
from asnn_goose.models.build import build_student
from asnn_goose.models.teacher import load_teacher
from asnn_goose.training.optimizer import build_optimizer
from asnn_goose.training.stages import plan_stages
from asnn_goose.training.step import DistillationStep, TeacherView

GOLDEN = Path(__file__).with_name("losses.json")
# In float64 the machines differ in the order of sums alone, and that moves a spike only where it is a tie.
RELATIVE_TOLERANCE = 1e-6
DOCUMENTS = 200
RECIPE = Recipe.model_validate(
    {
        "teacher": {"name": "pocket"},
        "data": {"name": "pocket"},
        "student": {"mixer": "wkv", "width": 24, "layers": 2, "max_positions": 32, "backend": "torch"},
        "objective": {"temperature": {"kind": "fixed", "value": 2.0}, "cross_entropy_weight": 0.5},
        "training": {"steps": 50, "batch_size": 2, "window": 24, "learning_rate": 5e-3, "warmup_steps": 2, "seed": 1},
        "evaluation": {"kind": "standard", "window": 32},
    }
)


def losses() -> list[float]:
    """The loss in nats per token of each step, everything in float64."""
    training = RECIPE.training
    teacher = load_teacher(RECIPE.teacher.name, torch.float64, "cpu")
    tokens = tokenize_documents(pocket_documents("train")[:DOCUMENTS], teacher.tokenizer, RECIPE.data.rows)
    rows = training_rows(tokens, training.window, RECIPE.data.rows)
    batches = BatchPlan(rows, training.batch_size, training.seed)
    student = build_student(RECIPE.student, RECIPE.spikes, teacher, training.seed).double()
    step = DistillationStep(student, teacher.head, RECIPE.objective)
    optimizer = build_optimizer(step, training, plan_stages(RECIPE, processes=1)[0])
    values = []
    for number in range(training.steps):
        ids = batches.batch(number * training.batch_size)
        record = step(ids, TeacherView(teacher.hidden_states(ids).clone()))
        (record.loss / record.tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(record.loss.detach() / record.tokens))
    return values


def test_the_first_losses_are_the_golden_ones(private_cache: Path) -> None:
    found = losses()
    assert found == pytest.approx(json.loads(GOLDEN.read_text()), rel=RELATIVE_TOLERANCE)
    assert found[-1] < 0.9 * found[0]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(losses(), indent=1) + "\n")
