import pytest
import torch

from asnn_goose.config_validation import ValidationOptions
from asnn_goose.data.tokens import tokenize_text
from asnn_goose.errors import ConfigError, DataError
from asnn_goose.evaluation import spike_validation
from asnn_goose.evaluation.layer_targets import layer_targets
from asnn_goose.evaluation.observe import observations, observe_teacher
from asnn_goose.evaluation.spike_evidence import SpikeEvidence
from asnn_goose.evaluation.spike_validation import SpikeValidation, joined_rows
from asnn_goose.evaluation.untrained import untrained_student
from asnn_goose.models.build import build_student
from asnn_goose.models.loading import load_causal_lm
from asnn_goose.presets import load_recipe

WINDOW, ROWS = 64, 48
OPTIONS = ValidationOptions(
    calibration_rows=16, channels=8, components=2, bins=4, permutations=199, permuted_rows=8, causal_tokens=1024,
    neighbor_tokens=200, greatest_lag=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(real_text, teacher):
    tokens = torch.as_tensor(tokenize_text(real_text[: 8 * ROWS * WINDOW], teacher.tokenizer)).long()
    return tokens[: ROWS * WINDOW].view(ROWS, WINDOW)


@pytest.fixture(scope="module")
def student(trained_run):
    """A student that spikes at k and v and learned for ten seconds."""
    return load_causal_lm(str(trained_run.folder.path)).model


@pytest.fixture(scope="module")
def outcome(student, teacher, rows):
    return SpikeValidation(options=OPTIONS).run(student, teacher, rows.split(8), max_batches=None)


def criteria(outcome):
    return {criterion.name: criterion for criterion in outcome.results.sound_verdict.criteria}


def test_spikes_of_a_trained_student_tell_more_than_permutations_and_more_than_before_training(outcome):
    found = criteria(outcome)
    assert found["informative"].passed
    assert found["learned"].value > 0
    for entry in outcome.results.probes:
        assert entry.spikes_bits < entry.target_entropy_bits
        assert max(entry.controls.values()) < entry.spikes_bits


def test_an_untrained_student_fails_the_sound_verdict(student, teacher, rows):
    fresh = untrained_student(student, seed=7)
    found = SpikeValidation(options=OPTIONS).run(fresh, teacher, rows.split(8), max_batches=None)
    assert not found.results.sound_verdict.passed
    assert not criteria(found)["learned"].passed


def test_validating_twice_gives_the_same_bytes_whatever_the_batches(outcome, student, teacher, rows):
    again = SpikeValidation(options=OPTIONS).run(student, teacher, rows.split(8), max_batches=None)
    assert again.results.to_json() == outcome.results.to_json()
    other = SpikeValidation(options=OPTIONS.model_copy(update={"rows_per_batch": 5}))
    found = other.run(student, teacher, rows.split(24), max_batches=None).results
    for one, two in zip(outcome.results.information, found.information, strict=True):
        assert two.spikes_bits == pytest.approx(one.spikes_bits, abs=1e-6)
    for one, two in zip(outcome.results.probes, found.probes, strict=True):
        assert two.spikes_bits == pytest.approx(one.spikes_bits, abs=1e-6)


def test_the_teacher_reads_once_for_all_students(student, teacher, rows, monkeypatch):
    read = []
    monkeypatch.setattr(
        spike_validation, "observe_teacher", lambda *given: read.append(given) or observe_teacher(*given)
    )
    SpikeValidation(layer_map={1: 1}, options=OPTIONS).run(student, teacher, rows.split(8), 4, dense_twin=student)
    assert sum(len(ids) for _, ids in read) == 32


def test_a_validation_leaves_models_and_generators_as_they_were(student, teacher, rows):
    before, state = student(rows[:1]).logits, torch.get_rng_state()
    SpikeValidation(layer_map={1: 1}, options=OPTIONS).run(student, teacher, rows.split(8), max_batches=4)
    torch.testing.assert_close(student(rows[:1]).logits, before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_map_limits_what_is_validated(student, teacher, rows):
    found = SpikeValidation(layer_map={1: 3}, options=OPTIONS).run(student, teacher, rows.split(8), max_batches=4)
    assert {(entry.layer, entry.site, entry.teacher_layer) for entry in found.results.information} == {
        (1, "k", 0), (1, "v", 0)
    }  # fmt: skip
    assert found.results.layer_map == {1: 3}


def test_a_dense_twin_is_compared_by_its_states(student, teacher, rows):
    recipe = load_recipe("convert-pocket", ["spikes.sites=[]"])
    twin = build_student(recipe.student, recipe.spikes, teacher, 0).eval()
    run = SpikeValidation(options=OPTIONS).run(student, teacher, rows.split(8), max_batches=None, dense_twin=twin)
    found = {(entry.what, entry.layer): entry.dense_twin_cka for entry in run.results.representation.matched}
    calibrated = SpikeEvidence(run.results.options, layer_targets(4, 4), ROWS, levels=1)
    evidence, calibrating = calibrated.beside(), run.results.options.calibration_rows
    calibrated.add(next(observations(student, teacher, rows[:calibrating], calibrating)))
    for seen in observations(twin, teacher, rows[calibrating:], 8):
        evidence.add(seen)
    assert found["block_output", 0] == evidence.finish_plain().cka["block_output", 0]
    assert found["k", 0] is None


def test_the_summary_says_both_verdicts_and_what_decides(outcome):
    assert set(outcome.summary) == {
        "passed", "recorded_gates_passed", "informative", "learned", "kept", "used", "aligned"
    }  # fmt: skip
    assert outcome.summary["learned"] == criteria(outcome)["learned"].value


def test_a_student_without_spikes_is_refused(teacher, rows):
    recipe = load_recipe("convert-pocket", ["spikes.sites=[]"])
    twin = build_student(recipe.student, recipe.spikes, teacher, 0)
    with pytest.raises(ConfigError, match="has no spikes to validate"):
        SpikeValidation(options=OPTIONS).run(twin, teacher, rows.split(8))


def test_batches_are_whole_rows_of_one_length_and_no_more_than_asked_for():
    ids = torch.arange(24).view(4, 6)
    assert torch.equal(joined_rows(ids.split(1), 3), ids[:3])
    with pytest.raises(DataError, match="got lengths 5, 6"):
        joined_rows([ids, ids[:, :5]], None)
    with pytest.raises(DataError, match="got none"):
        joined_rows([], None)
