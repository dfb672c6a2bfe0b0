import dataclasses

import numpy as np
import torch
from accelerate import Accelerator

from asnn_goose.config_student import GooseStudent
from asnn_goose.config_text import PackedRows
from asnn_goose.training.prepare import replaced_blocks, stage_batches
from asnn_goose.training.rows import PreparedText, TokenizedText
from asnn_goose.training.stages import plan_stages


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


def test_a_stage_reads_the_parts_in_its_own_shares(small_recipe):
    ones, twos = (TokenizedText(np.full(2000, token, dtype=np.uint16), PackedRows(), 0.5) for token in (1, 2))
    text = PreparedText((ones, twos), (), "", "")
    (plan,) = plan_stages(small_recipe(), processes=1)
    for weights, expected in ((None, {1, 2}), ((0.0, 1.0), {2})):
        plan = dataclasses.replace(plan, part_weights=weights)
        batches = stage_batches(small_recipe(), plan, text, Accelerator(cpu=True))
        assert {token for step in range(8) for token in batches.batch(step).unique().tolist()} == expected
