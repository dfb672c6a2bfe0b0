import pytest
import torch

from asnn_goose.config import Recipe
from asnn_goose.models.build import build_student
from asnn_goose.training.feature_terms import build_features
from asnn_goose.training.gradual import GradualChanges
from asnn_goose.training.stages import plan_stages
from asnn_goose.training.step import DistillationStep, TeacherView

# Two float32 sums over 5,000 words.
CLOSE = {"rtol": 1e-5, "atol": 0.0}


def recipe(**sections):
    fields = {
        "data": {"name": "pocket"}, "teacher": {"name": "pocket"}, "training": {"steps": 12, "batch_size": 2},
        "student": {"mixer": "wkv", "width": 16, "layers": 1, "max_positions": 256}, **sections,
    }  # fmt: skip
    return Recipe.model_validate(fields, strict=False)


def loss_of(module, teacher):
    torch.manual_seed(0)
    ids = torch.randint(0, 100, (2, 8))
    with torch.no_grad():
        return module(ids, TeacherView(torch.randn(2, 8, teacher.head.weight.shape[1]))).loss


def test_at_a_smooth_border_the_weights_move_evenly(teacher):
    own = {"kl_weight": 0.5, "cross_entropy_weight": 2.0}
    stages = [{"kind": "distill", "name": "a", "share": 1},
              {"kind": "distill", "name": "b", "share": 1, "transition": 4, "objective": own}]  # fmt: skip
    options = recipe(stages=stages)
    student = build_student(options.student, options.spikes, teacher, 0)
    first, second = plan_stages(options, 1)
    before, after = (
        loss_of(DistillationStep(student, teacher.head, plan.objective), teacher) for plan in (first, second)
    )
    module = DistillationStep(student, teacher.head, second.objective)
    changes = GradualChanges(options, second, module, student)
    for done, share in ((0, 0.0), (1, 0.25), (2, 0.5), (4, 1.0), (9, 1.0)):
        changes.reach(done)
        torch.testing.assert_close(loss_of(module, teacher), torch.lerp(before, after, share), **CLOSE)


def test_at_a_smooth_border_the_temperature_moves_and_alignment_rises_from_0(teacher):
    aligned = {"temperature": {"kind": "fixed", "value": 4.0}, "hidden_alignment": {"weight": 2.0}}
    later = {"kind": "distill", "name": "b", "share": 1, "transition": 4, "objective": aligned}
    stages = [{"kind": "distill", "name": "a", "share": 1}, later]
    options = recipe(stages=stages, student={"mixer": "goose"})
    student, plan = build_student(options.student, options.spikes, teacher, 0), plan_stages(options, 1)[1]
    features = build_features(plan.objective, options, teacher)
    module = DistillationStep(student, teacher.head, plan.objective, features, plan.span)
    changes = GradualChanges(options, plan, module, student)
    seen = [changes.reach(done) or (module.temperature.value, features.alignment.weight) for done in (0, 2, 4, 6)]
    assert seen == [(2.0, 0.0), (3.0, 1.0), (4.0, 2.0), (4.0, 2.0)]


@pytest.mark.parametrize("temperatures", [[1.0, 1.5, 2.0], [4.0, 2.0, 1.0]])
def test_each_part_of_a_curriculum_has_its_temperature(teacher, temperatures):
    options = recipe(curriculum={"pacing": {"kind": "step", "temperatures": temperatures}})
    student = build_student(options.student, options.spikes, teacher, 0)
    (plan,) = plan_stages(options, 1)
    module = DistillationStep(student, teacher.head, options.objective)
    changes, found = GradualChanges(options, plan, module, student), []
    for done in (0, 3, 4, 7, 8, 11):
        changes.reach(done)
        found.append(loss_of(module, teacher))
    for place, value in enumerate([value for value in temperatures for _ in range(2)]):
        fixed = recipe(objective={"temperature": {"kind": "fixed", "value": value}}).objective
        torch.testing.assert_close(
            found[place], loss_of(DistillationStep(student, teacher.head, fixed), teacher), **CLOSE
        )


def test_a_progressive_threshold_moves_in_place_and_counts_for_no_best_before_its_end(teacher):
    options = recipe(spikes={"threshold": {"kind": "progressive", "alpha": 0.5, "final_alpha": 0.9, "until": 0.5}})
    student = build_student(options.student, options.spikes, teacher, 0)
    alphas = [student.model.mixers()[0].encoders[site].alpha for site in ("k", "v")]
    places = [alpha.data_ptr() for alpha in alphas]
    changes = GradualChanges(options, plan_stages(options, 1)[0], torch.nn.Module(), student)
    for done, expected, complete in ((0, 0.5, False), (3, 0.7, False), (6, 0.9, True), (11, 0.9, True)):
        changes.reach(done)
        assert [float(alpha) for alpha in alphas] == pytest.approx([expected] * 2)
        assert changes.complete is complete
    assert [alpha.data_ptr() for alpha in alphas] == places
    assert not any(alpha.requires_grad for alpha in alphas)
