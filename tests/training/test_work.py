import pytest
import torch

from asnn_goose.config_student import GooseStudent
from asnn_goose.data.batches import BatchPlan
from asnn_goose.data.tokens import TokenRows
from asnn_goose.evaluation.perplexity import evaluation_windows
from asnn_goose.models.block import run_block
from asnn_goose.models.build import build_student
from asnn_goose.training.align import AlignmentStep
from asnn_goose.training.prepare import replaced_blocks
from asnn_goose.training.stages import plan_stages
from asnn_goose.training.step import DistillationStep
from asnn_goose.training.work import RunMaterial, build_work


@pytest.fixture
def works(small_recipe, teacher, real_text):
    """The work of an alignment and of a distillation of the same student."""
    base = small_recipe().model_dump(mode="json")
    stages = [{"kind": "align", "share": 1, "train": "new"}, {"kind": "distill", "share": 1}]
    recipe = type(small_recipe()).model_validate(
        {**base, "student": {"mixer": "goose"}, "stages": stages}, strict=False
    )
    assert isinstance(recipe.student, GooseStudent)
    windows = evaluation_windows(real_text[:5000], teacher.tokenizer, recipe.evaluation)
    student = build_student(recipe.student, recipe.spikes, teacher, 0)
    material = RunMaterial(teacher, student, windows, (), None, 8.0)
    rows = BatchPlan(TokenRows(windows.rows.tokens, 32, 32), 2, 0)
    replaced = replaced_blocks(recipe, teacher)
    return student, rows, lambda index: build_work(plan_stages(recipe, 1)[index], recipe, material, replaced, rows)


def test_an_alignment_of_what_is_new_trains_nothing_that_was_copied(works):
    student, rows, build = works
    work = build(0)
    assert isinstance(work.module, AlignmentStep)
    ids = rows.batch(0)
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    work.module(ids, work.observe(ids)).loss.backward()
    work.optimizer.step()
    changed = {
        name.split(".")[-2] for name, parameter in student.named_parameters() if (parameter != before[name]).any()
    }
    assert "rates" in changed
    assert not changed & {"key", "value", "receptance", "output", "up", "embed_tokens"}


def test_the_next_stage_sets_all_weights_free_again(works):
    student, rows, build = works
    build(0)
    work = build(1)
    assert isinstance(work.module, DistillationStep)
    assert all(parameter.requires_grad for parameter in student.parameters())
    ids = rows.batch(0)
    work.module(ids, work.observe(ids)).loss.backward()
    assert student.model.embed_tokens.weight.grad is not None


def test_a_student_that_is_its_teacher_but_for_attention_is_compared_block_by_block(works, small_recipe, teacher):
    """What the step is shown of the teacher is as many states as the student has blocks, of its size."""
    base = small_recipe().model_dump(mode="json")
    recipe = type(small_recipe()).model_validate(
        {**base, "student": {"mixer": "goose", "keep_layers": 2}, "objective": {"hidden_alignment": {"weight": 1.0}}},
        strict=False,
    )
    student = build_student(recipe.student, recipe.spikes, teacher, 0)
    _, rows, _ = works
    material = RunMaterial(teacher, student, None, (), None, 8.0)
    work = build_work(plan_stages(recipe, 1)[0], recipe, material, replaced_blocks(recipe, teacher), rows)
    ids = rows.batch(0)
    view = work.observe(ids)
    assert [state.shape for state in view.stream] == [(*ids.shape, 256)] * 2
    record = work.module(ids, view)
    record.loss.backward()
    assert record.means["hidden_error"] > 0
    assert student.model.layers[0].mixer.rates.weight.grad is not None


def test_what_learns_beside_the_student_is_trained_at_the_rate_of_new_weights(small_recipe, teacher, works):
    alignment = {"loss": "mse", "layer_map": {"kind": "learned"}, "projector": {"kind": "linear"}}
    base = small_recipe().model_dump(mode="json")
    recipe = type(small_recipe()).model_validate({**base, "objective": {"hidden_alignment": alignment}}, strict=False)
    student = build_student(recipe.student, recipe.spikes, teacher, 0)
    material = RunMaterial(teacher, student, None, (), None, 8.0)
    work = build_work(plan_stages(recipe, 1)[0], recipe, material, (), works[1])
    decays = {
        parameter: group["weight_decay"] for group in work.optimizer.param_groups for parameter in group["params"]
    }
    learned = work.features.alignment
    assert [decays[matrix.weight] for matrix in learned.projectors] == [0.01] * 2
    assert [decays[mixture.logits] for mixture in learned.mixtures.values()] == [0.0] * 2
    ids = works[1].batch(0)
    work.module(ids, work.observe(ids)).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in learned.parameters())


def test_blocks_are_computed_again_where_a_recipe_asks_for_it(small_recipe, teacher, real_text):
    losses = []
    for again in (False, True):
        recipe = small_recipe(training={"steps": 1, "window": 32, "activation_checkpointing": again})
        windows = evaluation_windows(real_text[:5000], teacher.tokenizer, recipe.evaluation)
        student = build_student(recipe.student, recipe.spikes, teacher, 0)
        rows = BatchPlan(TokenRows(windows.rows.tokens, 32, 32), 2, 0)
        material = RunMaterial(teacher, student, windows, (), None, 8.0)
        work = build_work(plan_stages(recipe, 1)[0], recipe, material, (), rows)
        assert (student.model.block_runner is run_block) is not again
        loss = work.module(rows.batch(0), work.observe(rows.batch(0))).loss
        loss.backward()
        losses.append((loss.item(), student.model.embed_tokens.weight.grad.norm().item()))
    assert losses[0] == losses[1]


def test_the_slope_by_the_temperature_is_given_once_and_without_the_scalers_factor(small_recipe, teacher, real_text):
    recipe = small_recipe(objective={"temperature": {"kind": "learned"}})
    windows = evaluation_windows(real_text[:5000], teacher.tokenizer, recipe.evaluation)
    material = RunMaterial(teacher, build_student(recipe.student, recipe.spikes, teacher, 0), windows, (), None, 8.0)
    rows = BatchPlan(TokenRows(windows.rows.tokens, 32, 32), 2, 0)
    work = build_work(plan_stages(recipe, 1)[0], recipe, material, (), rows)
    work.temperature.slope.fill_(512.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    assert work.take_slope(scaler)["temperature_gradient"].item() == 2.0
    assert work.take_slope(None)["temperature_gradient"].item() == 0.0
    assert work.figures() == pytest.approx({"temperature": 2.0})
