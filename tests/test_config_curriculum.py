import pytest
from pydantic import ValidationError

from asnn_goose.config_curriculum import StepPacing
from asnn_goose.errors import ConfigError
from asnn_goose.presets import load_recipe

CURRICULUM = "curriculum={pacing: {kind: step, temperatures: [1, 1.5, 2]}}"
TEXT = "{name: pocket}"
REFUSALS = {
    "curriculum={batches: 0}": "curriculum.batches: expected a value greater than or equal to 1, got 0",
    "curriculum={difficulty: {kind: length}}": (
        'curriculum.difficulty.kind: expected one of kl_ce, loss, confidence, got "length"'
    ),
    "curriculum={difficulty: {kind: loss, temperature: 2}}": (
        "curriculum.difficulty.temperature does not apply to the chosen curriculum.difficulty, which takes kind, of"
    ),
    "curriculum={pacing: {kind: linear, until: 0}}": (
        "curriculum.pacing.until: expected a value greater than 0, got 0"
    ),
    "curriculum={pacing: {kind: step, temperatures: [1, 2]}}": (
        "curriculum.pacing.temperatures=[1.0, 2.0]: give one number for each of curriculum.pacing.parts (3)"
    ),
    f"data={{source: mixture, parts: [{{weight: 1, text: {TEXT}}}, {{weight: 1, text: {TEXT}}}]}}": (
        "curriculum orders the rows of one text: drop it, or take another data than a mixture"
    ),
    "stages=[{kind: distill, share: 1, window: 128}]": (
        "curriculum orders rows of training.window=256: drop stages.0.window"
    ),
    "stages=[{kind: distill, share: 1, objective: {}}]": (
        "curriculum.pacing.temperatures set the temperature of the whole run: give objective.temperature.kind=fixed "
        "and stages without objective and transition, or null"
    ),
    "training.cuda_graphs=true": (
        "curriculum.pacing.temperatures changes numbers that training.cuda_graphs=true has recorded: set cuda_graphs "
        "to false"
    ),
}  # fmt: skip


@pytest.mark.parametrize("override", REFUSALS)
def test_a_curriculum_that_cannot_be_is_refused_in_one_line(override):
    given = [override] if override.startswith("curriculum") else [CURRICULUM, override]
    with pytest.raises(ConfigError) as refused:
        load_recipe("smollm2-pydoc", given)
    assert str(refused.value) == REFUSALS[override]


def test_the_recorded_curriculum_is_the_default():
    curriculum = load_recipe("smollm2-pydoc", ["curriculum={pretraining: {}}"]).curriculum
    assert (curriculum.batches, curriculum.difficulty.kind, curriculum.difficulty.temperature) == (50, "kl_ce", 1.0)
    assert (curriculum.pacing.parts, curriculum.pacing.subsets) == (3, "cumulative")
    before = curriculum.pretraining
    assert (before.steps, before.batch_size, before.temperature, before.keep) == (100, 8, 2.0, True)
    assert (before.learning_rate, before.weight_decay) == (3e-4, 0.01)


def test_durations_are_one_a_part():
    with pytest.raises(ValidationError, match=r"one number for each of curriculum\.pacing\.parts"):
        StepPacing(parts=2, durations=(1.0,))
