import torch

from asnn_goose.config_student import GooseStudent
from asnn_goose.training.prepare import replaced_blocks


def test_the_blocks_that_stand_for_the_students_are_the_kept_ones(small_recipe, teacher):
    recipe = small_recipe().model_copy(update={"student": GooseStudent(mixer="goose", keep_layers=(1, 3))})
    blocks = replaced_blocks(recipe, teacher)
    bodies = [teacher.model.transformer.h[index].attn for index in (1, 3)]
    assert [block.attention for block in blocks] == bodies


def test_a_wkv_student_replaces_no_attention(small_recipe, teacher):
    assert replaced_blocks(small_recipe(), teacher) == ()


def test_teacher_perplexity_and_controls_stand_in_the_metrics(finished_run):
    lines = finished_run.folder.metrics()
    assert torch.isfinite(torch.tensor(next(x["teacher_perplexity"] for x in lines if "teacher_perplexity" in x)))
    assert not any("control" in line for line in lines)
