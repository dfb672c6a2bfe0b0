import pytest
import torch

from asnn_goose.config import Recipe
from asnn_goose.config_student import Spikes, WkvStudent
from asnn_goose.config_training import StageExit, TrainingByTokens
from asnn_goose.models.build import build_student
from asnn_goose.spikes.encoder import SpikeEncoder
from asnn_goose.training.stages import copied_parameters, ends_early, plan_stages, stage_steps, trained_parameters


def recipe(**sections):
    training = {"steps": 10, "batch_size": 4, "window": 32, "accumulation": 3, **sections.pop("training", {})}
    fields = {
        "data": {"name": "pocket"}, "teacher": {"name": "pocket"}, "student": {"mixer": "goose"}, "training": training,
    }  # fmt: skip
    return Recipe.model_validate({**fields, **sections}, strict=False)


def test_a_step_sums_over_rows_windows_micro_batches_and_processes():
    assert plan_stages(recipe(), processes=2)[0].tokens_per_step == 4 * 32 * 3 * 2


def test_a_recipe_without_stages_is_one_that_distills_into_everything():
    (plan,) = plan_stages(recipe(training={"copied_learning_rate": 1e-5}), processes=1)
    assert (plan.kind, plan.train, plan.steps, plan.copied_learning_rate) == ("distill", "all", 10, 1e-5)


def test_a_budget_in_tokens_is_rounded_up_to_whole_steps():
    assert stage_steps(TrainingByTokens(tokens=1000), [1.0], 0, tokens_per_step=128) == 8
    assert stage_steps(TrainingByTokens(tokens=1000), [1.0], 0, tokens_per_step=256) == 4
    assert stage_steps(TrainingByTokens(tokens=3_000_000), [1, 1, 1], 2, tokens_per_step=1_000_000) == 1


def test_stages_share_the_budget_and_may_have_windows_and_rates_of_their_own():
    stages = [
        {"kind": "align", "share": 1, "learning_rate": 2e-3},
        {"kind": "distill", "share": 2},
        {"kind": "distill", "name": "long", "share": 1, "window": 64, "batch_size": 2, "copied_learning_rate": 1e-5},
    ]
    plans = plan_stages(recipe(stages=stages, training={"steps": 40}), processes=1)
    assert [plan.steps for plan in plans] == [10, 20, 10]
    assert [plan.tokens_per_step for plan in plans] == [384, 384, 384]
    assert plans[0].learning_rate == plans[0].copied_learning_rate == 2e-3
    assert plans[2].copied_learning_rate == 1e-5
    assert plans[2].part_weights is None


def test_stages_end_where_the_recorded_ones_do_and_lose_no_step():
    # At 40, 70 and 100 % of 3,000 steps (v11), and at round(S / 3), round(2 S / 3) and S = 5,000 (v13).
    for shares, steps, ends in (([40, 30, 30], 3000, [1200, 2100]), ([1, 1, 1], 5000, [1667, 3333])):
        stages = [{"kind": "distill", "share": share, "name": str(place)} for place, share in enumerate(shares)]
        plans = plan_stages(recipe(stages=stages, training={"steps": steps}), processes=2)
        assert [plan.first_step for plan in plans] == [0, *ends]
        assert {plan.run_steps for plan in plans} == {sum(plan.steps for plan in plans)} == {steps}


def test_the_recorded_progressive_stages_are_a_recipe():
    stages = [
        {"kind": "distill", "name": str(share), "share": share, "alignment_multiplier": multiplier, "moments": "kept",
         "transition": 10 * (share < 40)}
        for share, multiplier in ((40, 0.0), (30, 0.5), (31, 1.0))
    ]  # fmt: skip
    objective = {"hidden_alignment": {"weight": 0.01}}
    plans = plan_stages(recipe(stages=stages, objective=objective, training={"steps": 100}), processes=1)
    weights = [plan.objective.hidden_alignment and plan.objective.hidden_alignment.weight for plan in plans]
    assert weights == [None, 0.005, 0.01]
    assert [plan.objective_before for plan in plans] == [None, plans[0].objective, plans[1].objective]
    assert [plan.transition for plan in plans] == [0, 10, 10]
    assert all(plan.keeps_moments for plan in plans)


@pytest.mark.parametrize(
    ("exit", "before", "now", "expected"),
    [
        (None, 20.0, 20.0, False),
        (StageExit(below_ratio=1.5), None, 15.0, True),
        (StageExit(below_ratio=1.5), None, 15.1, False),
        (StageExit(least_gain=0.1), 20.0, 18.1, True),
        (StageExit(least_gain=0.1), 20.0, 17.9, False),
        (StageExit(least_gain=0.1), None, 20.0, False),
        (StageExit(least_gain=0.1), 20.0, float("nan"), False),
    ],
)
def test_a_stage_ends_on_perplexity(exit, before, now, expected):
    assert ends_early(exit, before, now, teacher=10.0) is expected


def test_what_attention_has_too_counts_as_copied(teacher):
    options = recipe(spikes={"sites": "all+head"})
    student = build_student(options.student, options.spikes, teacher, 0)
    copied = copied_parameters(student, options)
    mixer = student.model.mixers()[0]
    assert {mixer.key.weight, mixer.output.bias, student.model.embed_tokens.weight} <= copied
    assert not {mixer.taps, mixer.rates.weight, mixer.head_norm, mixer.gate_up.weight} & copied
    encoders = [part for part in student.modules() if isinstance(part, SpikeEncoder)]
    assert len(encoders) == 8 * len(student.model.layers) - len(student.model.layers) + 1
    assert not {encoder.amplitude for encoder in encoders} & copied
    random = options.model_copy(update={"student": options.student.model_copy(update={"initialization": "random"})})
    assert copied_parameters(student, random) == set()


def test_a_wkv_mixer_is_new_from_end_to_end(teacher):
    options = recipe(student={"mixer": "wkv", "initialization": "teacher", "width": 256, "layers": 1, "mlp": "gelu",
                              "max_positions": 512})  # fmt: skip
    student = build_student(options.student, Spikes(), teacher, 0)
    assert not set(student.model.mixers()[0].parameters()) & copied_parameters(student, options)
    assert isinstance(options.student, WkvStudent)


def plan(train, **stage):
    kind = "align" if "sublayers" in stage else "distill"
    return plan_stages(recipe(stages=[{"kind": kind, "share": 1, "train": train, **stage}]), 1)[0]


def test_an_align_stage_trains_the_sublayers_it_aligns(teacher):
    options = recipe()
    student = build_student(options.student, options.spikes, teacher, 0)
    copied = copied_parameters(student, options)

    def trained(train, sublayers):
        return trained_parameters(student, plan(train, sublayers=sublayers), copied)

    fed = {p for block in student.model.layers for p in block.feed_forward.parameters()}
    assert trained("sublayers", "mixers") == trained_parameters(student, plan("mixers"), copied)
    assert trained("sublayers", "feed_forward") == fed
    assert trained("sublayers", "all") == fed | trained("sublayers", "mixers")
    assert trained("new", "all") == trained("sublayers", "all") - copied


def test_the_weights_of_a_stage_are_everything_the_mixers_or_what_is_new(teacher):
    options = recipe()
    student = build_student(options.student, options.spikes, teacher, 0)
    copied = copied_parameters(student, options)
    everything, mixers, new = (trained_parameters(student, plan(part), copied) for part in ("all", "mixers", "new"))
    assert new < mixers < everything
    assert new == mixers - copied
    assert sum(torch.numel(p) for p in everything) == student.num_parameters()


@pytest.mark.parametrize("kind", ["fixed", "learned"])
def test_a_threshold_that_is_found_but_not_learned_is_not_trained(teacher, kind):
    options = recipe(spikes={"sites": "all", "scale": "token", "threshold": {"kind": kind}})
    student = build_student(options.student, options.spikes, teacher, 0)
    encoder = student.model.layers[0].mixer.encoders["mixer_in"]
    for part in ("all", "mixers", "new"):
        trained = trained_parameters(student, plan(part), copied_parameters(student, options))
        assert (encoder.alpha in trained) == (kind == "learned")
        assert encoder.amplitude in trained


def test_schedules_run_over_the_stages_that_share_the_recipes_objective():
    stages = [
        {"kind": "align", "share": 1},
        {"kind": "distill", "share": 2},
        {"kind": "distill", "name": "own", "share": 3, "objective": {"kl_weight": 0.5}},
        {"kind": "distill", "name": "last", "share": 4},
    ]
    plans = plan_stages(recipe(stages=stages, training={"steps": 100}), processes=1)
    assert [tuple(plan.span) for plan in plans[1:]] == [(0, 20, 60), (0, 30, 30), (20, 40, 60)]


@pytest.mark.parametrize("per", ["encoder", "channel"])
def test_an_alpha_that_the_recorded_estimator_passes_by_is_there_and_not_trained(teacher, per):
    options = recipe(spikes={"threshold": {"kind": "learned", "per": per}, "surrogate": {"kind": "recorded_ste"}})
    student = build_student(options.student, options.spikes, teacher, 0)
    encoder = student.model.layers[0].mixer.encoders["k"]
    assert encoder.alpha.shape == (() if per == "encoder" else (student.config.hidden_size,))
    trained = trained_parameters(student, plan("all"), copied_parameters(student, options))
    assert encoder.alpha not in trained
    assert encoder.amplitude in trained
