from dataclasses import replace

import pytest
import torch

from asnn_goose.config import Recipe
from asnn_goose.config_student import GooseStudent, Spikes
from asnn_goose.evaluation.student import site_encoders
from asnn_goose.models.build import build_student
from asnn_goose.models.calibration import dense_encoders
from asnn_goose.presets import load_recipe
from asnn_goose.training.distill import distill
from asnn_goose.training.ramp import Hardness
from asnn_goose.training.stages import plan_stages


@pytest.fixture
def student(teacher):
    options = Spikes(sites="all", amplitude="none", scale="token")
    return build_student(GooseStudent(mixer="goose", keep_layers=2), options, teacher, 0)


def plans(*ramps):
    stages = [{"kind": "distill", "name": f"s{i}", "share": 1, "ramp": ramp} for i, ramp in enumerate(ramps)]
    fields = {
        "data": {"name": "pocket"}, "teacher": {"name": "pocket"}, "student": {"mixer": "goose"},
        "spikes": {"sites": "all", "scale": "token"}, "stages": stages,
        "training": {"steps": 8 * len(stages), "batch_size": 2, "window": 16},
    }  # fmt: skip
    return plan_stages(Recipe.model_validate(fields, strict=False), 1)


def hardness_of(student, site):
    (found,) = {
        None if encoder.hardness is None else float(encoder.hardness)
        for name, encoder in site_encoders(student).items()
        if name.split(".")[1] == site
    }
    return found


def test_sites_rise_one_after_another_and_those_of_later_stages_stay_dense(student):
    first, second = plans({"sites": ["ffn_in", ["ffn_mid", "k"]]}, {"sites": ["v"], "tokens": 2 * 2 * 16})
    hardness = Hardness(student, first)
    seen = {done: hardness.reach(done) or [hardness_of(student, site) for site in ("ffn_in", "k", "v", "mixer_in")]
            for done in (0, 2, 4, 6, 8)}  # fmt: skip
    assert seen == {
        0: [0.0, 0.0, 0.0, None], 2: [0.5, 0.0, 0.0, None], 4: [1.0, 0.0, 0.0, None], 6: [1.0, 0.5, 0.0, None],
        8: [1.0, 1.0, 0.0, None],
    }  # fmt: skip
    assert not hardness.complete
    hardness = Hardness(student, second)
    hardness.reach(1)
    assert [hardness_of(student, site) for site in ("ffn_in", "k", "v")] == [None, None, 0.5]
    assert not hardness.complete
    hardness.reach(2)
    assert hardness.complete
    assert Hardness(student, plans(None)[0]).complete


def test_a_ramp_ends_exactly_at_one(student):
    (plan,) = plans({"sites": ["ffn_in", "ffn_mid", "mixer_out"]})
    for steps in range(1, 40):
        hardness = Hardness(student, replace(plan, ramp=replace(plan.ramp, steps=steps)))
        hardness.reach(steps)
        assert hardness.complete


def test_at_0_the_student_is_dense_and_at_1_it_spikes(student):
    (plan,) = plans({"sites": ["ffn_in", "ffn_mid", "mixer_in", "gate_mid", "mixer_out", "k", "v"]})
    student.double().eval()
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        spiking = student(ids).logits
        with dense_encoders(student):
            dense = student(ids).logits
        hardness = Hardness(student, plan)
        torch.testing.assert_close(student(ids).logits, dense, rtol=1e-9, atol=1e-9)
        hardness.reach(plan.ramp.steps)
        # Blended spikes are torch's, plain ones the kernel's, whose sums have another order.
        torch.testing.assert_close(student(ids).logits, spiking, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(spiking, dense, rtol=1e-3, atol=1e-3)


def test_a_site_the_student_has_not_takes_no_time(teacher):
    wkv = build_student(GooseStudent(mixer="goose", gate_rank=0), Spikes(sites="all", scale="token"), teacher, 0)
    (plan,) = plans({"sites": ["gate_mid", "ffn_in"]})
    hardness = Hardness(wkv, plan)
    hardness.reach(4)
    assert hardness_of(wkv, "ffn_in") == 0.5


def shipped(*overrides):
    budget = ["training.steps=8", "training.batch_size=4", "training.window=64", "training.precision=fp32"]
    small = ["evaluation.window=64", "evaluation.tokens=1024", "samples=0", "controls=false"]
    often = ["training.logging_interval=4", "training.evaluation_interval=4", "student.calibration_tokens=1024"]
    return load_recipe("convert-pocket-spiking", [*budget, *small, *often, *overrides])


def test_the_shipped_pocket_recipe_feeds_every_layer_with_spikes_and_learns(run_folder, quiet_console):
    results = distill(shipped(), run_folder(shipped()), quiet_console).results
    spikes = results.spikes
    # The head alone reads real numbers.
    assert spikes.measured_spike_fed_mac_share == pytest.approx(spikes.spike_fed_mac_share)
    assert spikes.silent_layers == ()
    assert all(found.passed for found in results.checks)
    untrained = results.curves.perplexity.values[0]
    assert results.student.perplexity < 0.9 * untrained


def test_what_is_not_yet_all_spikes_is_never_the_best(run_folder, quiet_console):
    ramp = "{sites: [[k, v, mixer_in, gate_mid, mixer_out, ffn_in, ffn_mid]], tokens: 1024}"
    stages = f"stages=[{{kind: distill, share: 1}}, {{kind: distill, name: spike, share: 1, ramp: {ramp}}}]"
    recipe = shipped(stages)
    folder = run_folder(recipe)
    results = distill(recipe, folder, quiet_console).results
    seen = {line["step"]: line["evaluation_perplexity"] for line in folder.metrics() if "evaluation_perplexity" in line}
    # The ramp ends with the last step: all evaluations before were of a student that was in part dense.
    assert results.student.perplexity == seen[8] > min(seen.values())
    assert results.perplexities.best_step == 8
    assert [stage.perplexity for stage in results.stages] == [seen[4], seen[8]]
