import pytest

from asnn_goose.config import Recipe
from asnn_goose.config_training import EarlyStopping, LossPlateau, TrainingBySteps
from asnn_goose.training.checkpoint import load_checkpoint
from asnn_goose.training.distill import distill
from asnn_goose.training.stopping import counts_as_better, ends_run, on_plateau, patience_ended

# The evaluations that are recorded, and the step at which each run stopped (v13, v14, v14.1, v14.2, v14.3).
RECORDED = {
    "v13": (500, 1200, {300: 980, 600: 978.5, 900: 1090, 1200: 1134}),
    "v14": (500, 4500, {300: 936.0, 600: 706.4, 900: 602.3, 1200: 559.5, 1500: 517.3, 1800: 469.1, 2100: 455.4,
                        2400: 446.6, 2700: 434.0, 3000: 431.5, 3300: 433.5, 3600: 427.5, 3900: 425.2, 4200: 425.7,
                        4500: 426.3}),
    "v14.1": (500, 2700, {300: 510.75, 600: 418.33, 900: 369.01, 1200: 357.41, 1500: 340.47, 1800: 328.84,
                          2100: 320.34, 2700: 321.63}),
    "v14.2": (500, 2400, {600: 385.9, 900: 355.6, 1200: 340.6, 1500: 333.6, 1800: 330.9, 2100: 334.5, 2400: 393.3}),
    "v14.3": (800, 4200, {300: 512.71, 600: 407.16, 900: 370.34, 1200: 342.10, 1800: 323.59, 2100: 318.07,
                          2700: 314.10, 3300: 306.89, 4200: 308.05}),
}  # fmt: skip
NEVER_STOPPED = {3000: 440.8, 3300: 437.7, 3900: 435.5, 4500: 434.44}


def stop_step(stopping, trajectory):
    """The first evaluation after which a run would stop, as the loop asks; None if it goes on."""
    reference = since = None
    for step, perplexity in trajectory.items():
        if counts_as_better(stopping, reference, perplexity):
            reference, since = perplexity, step
        if patience_ended(stopping, since, 0, step):
            return step
    return None


@pytest.mark.parametrize("version", RECORDED)
@pytest.mark.parametrize("ends", ["run", "stage"])
def test_the_recorded_runs_stop_where_they_did(version, ends):
    patience, stopped, trajectory = RECORDED[version]
    stopping = EarlyStopping(patience_steps=patience, min_delta=1.0, ends=ends)
    assert stop_step(stopping, trajectory) == stopped == max(trajectory)


def test_the_recorded_run_that_did_not_stop_goes_on():
    assert stop_step(EarlyStopping(patience_steps=500, min_delta=1.0), NEVER_STOPPED) is None


def test_a_stage_counts_anew_and_a_run_does_not():
    for ends, expected in (("stage", False), ("run", True)):
        assert patience_ended(EarlyStopping(patience_steps=500, ends=ends), 300, 600, 900) is expected


def test_only_early_stopping_ends_a_run_and_only_if_asked():
    asked = TrainingBySteps(steps=1, early_stopping=EarlyStopping(ends="run"))
    assert ends_run("early_stopping", asked)
    assert not ends_run("exit", asked)
    assert not ends_run("early_stopping", TrainingBySteps(steps=1, early_stopping=EarlyStopping()))


def lines(losses, name="loss_nats"):
    return [{"step": 10 * place, name: loss} for place, loss in enumerate(losses, start=1)]


@pytest.mark.parametrize(
    ("losses", "flat"),
    [([9, 9, 4, 4, 4, 4], True), ([4, 4, 4, 4, 3.9, 3.9], False), ([4, 4, 4, 4, 3.99, 3.99], True),
     ([1, 1, 4, 4, 5, None], True), ([4, 4, 4], False)],
)  # fmt: skip
def test_a_plateau_is_a_mean_hardly_below_the_one_before(losses, flat):
    plateau = LossPlateau(steps=20, least_gain=0.01)
    metrics = [{"step": 0, "evaluation_perplexity": 3.0}, *lines(losses)]
    assert on_plateau(plateau, metrics, 0, 10 * len(losses)) is flat
    assert on_plateau(None, metrics, 0, 10 * len(losses)) is False


def test_a_plateau_looks_at_its_own_stage_and_at_what_that_minimizes():
    plateau = LossPlateau(steps=20, least_gain=0.01)
    assert not on_plateau(plateau, lines([4, 4, 4, 4, 4, 4]), 30, 60)
    assert on_plateau(plateau, lines([9, 9, 4, 4, 4, 4], "relative_error"), 20, 60)


def staged(small_recipe, stage, **training):
    """Two stages of six steps, evaluated every other step."""
    second = {"kind": "distill", "name": "second", "share": 1}
    training = {"evaluation_interval": 2, "logging_interval": 1, **training}
    base = small_recipe(training=training, evaluation={"tokens": 256}).model_dump(mode="json")
    stages = [{"kind": "distill", "name": "first", "share": 1, **stage}, second]
    return Recipe.model_validate({**base, "samples": 0, "stages": stages}, strict=False)


def test_a_stage_whose_loss_stays_flat_makes_room_for_the_next(small_recipe, run_folder, quiet_console):
    # No loss of a few steps falls by nine tenths.
    recipe = staged(small_recipe, {"exit": {"plateau": {"steps": 2, "least_gain": 0.9}}})
    results = distill(recipe, run_folder(recipe), quiet_console).results
    assert [(stage.steps, stage.stop_reason) for stage in results.stages] == [(4, "exit"), (6, "budget")]


def test_early_stopping_that_ends_the_run_leaves_no_later_stage(small_recipe, run_folder, quiet_console):
    stopping = {"patience_steps": 4, "min_delta": 1e9, "ends": "run"}
    recipe = staged(small_recipe, {}, early_stopping=stopping)
    folder = run_folder(recipe)
    results = distill(recipe, folder, quiet_console).results
    assert [(stage.name, stage.steps, stage.stop_reason) for stage in results.stages] == [
        ("first", 4, "early_stopping")
    ]
    assert load_checkpoint(folder.checkpoints / "last").state.stage == 2
