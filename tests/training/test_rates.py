import math
from dataclasses import replace

import pytest

from asnn_goose.config_objective import Objective
from asnn_goose.config_training import TrainingBySteps
from asnn_goose.training.rates import rate_share
from asnn_goose.training.stages import StagePlan

STAGE = StagePlan(
    index=1, name="distill", kind="distill", steps=40, train="all", sublayers="mixers", batch_size=2, window=8,
    part_weights=None, accumulation=1, processes=1, learning_rate=1e-3, copied_learning_rate=1e-4,
    objective=Objective(), exit=None, first_step=60, run_steps=110,
)  # fmt: skip
RUN = TrainingBySteps(steps=110, warmup_steps=10, learning_rate_course="run")


def test_a_course_over_the_run_goes_on_where_the_stage_begins():
    # Half a cosine over the 100 steps behind the warm-up: step 60 is half way.
    assert rate_share(STAGE, 0, RUN) == pytest.approx(0.5)
    assert rate_share(STAGE, 25, RUN) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
    assert rate_share(replace(STAGE, first_step=0), 4, RUN) == pytest.approx(0.5)


def test_a_course_over_the_stage_knows_no_other():
    stage = RUN.model_copy(update={"learning_rate_course": "stage"})
    assert rate_share(STAGE, 9, stage) == rate_share(STAGE, 10, stage) == 1.0
    assert rate_share(STAGE, 25, stage) == pytest.approx(0.5)


def test_a_stage_may_warm_up_again():
    again = replace(STAGE, warmup_steps=5)
    stage = RUN.model_copy(update={"learning_rate_course": "stage"})
    assert [rate_share(again, done, stage) for done in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [rate_share(again, done, RUN) / rate_share(STAGE, done, RUN) for done in range(7)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0]
    )


def test_the_recorded_warm_up_begins_with_0():
    # Recorded: lr * s / W for s < W, then lr * (1 + cos(pi * (s - W) / (S - W))) / 2.
    recorded = RUN.model_copy(update={"warmup_from_zero": True})
    whole = replace(STAGE, first_step=0, steps=110)
    expected = [s / 10 if s < 10 else (1 + math.cos(math.pi * (s - 10) / 100)) / 2 for s in range(110)]
    assert [rate_share(whole, s, recorded) for s in range(110)] == pytest.approx(expected)
