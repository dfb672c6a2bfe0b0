import json

import pytest
from pydantic import ValidationError

from asnn_goose.checks import check
from asnn_goose.errors import RunFolderError
from asnn_goose.results import ModelResult, Protocol, Results

STABLE_PATHS = """
    teacher.perplexity student.perplexity ratio.to_teacher ratio.to_dense_twin student.parameters compression_ratio
    spikes.density spikes.events_per_activation spikes.spike_fed_mac_share spikes.amplitudes temperature.final
    spikes.measured_spike_fed_mac_share spikes.additions_per_token spikes.silent_layers
    throughput.tokens_per_second throughput.mfu memory.peak_bytes stages checks perplexities.best perplexities.last
    perplexities.after_adaptation curves.loss curves.perplexity curves.learning_rate curves.density spikes.layers
    hardware.device hardware.peak_memory_bytes hardware.mean_memory_bytes hardware.seconds hardware.tokens platform
    version recipe seed comparison.recorded ttt protocol.tokenizer protocol.window protocol.stride protocol.tokens
    figures counters.steps_done counters.steps_skipped counters.rolled_back counters.stopped_early stop_reason
"""


def results(**fields):
    given = {
        "version": "0.1.0",
        "recipe": "quickstart",
        "recipe_hash": "0",
        "seed": 1,
        "platform": "local",
        "stop_reason": "budget",
        "protocol": Protocol(kind="standard", tokenizer="gpt2", window=8, stride=8, tokens=64),
        "teacher": ModelResult(perplexity=20.0),
        "student": ModelResult(perplexity=30.0),
    }
    return Results(**(given | fields))


def value_at(path, document):
    for key in path.split("."):
        document = document[key]
    return document


@pytest.mark.parametrize("path", STABLE_PATHS.split())
def test_stable_key_paths_are_there(path):
    value_at(path, json.loads(results().to_json()))


def test_results_read_back_as_they_were_written():
    whole = results(checks=(check("beats", 3.0, "<", 4.0),), compression_ratio=2.5)
    assert Results.from_json(whole.to_json()) == whole


def test_what_was_not_measured_is_null():
    document = json.loads(results().to_json())
    for path in ("ratio.to_dense_twin", "throughput.mfu", "memory.peak_bytes", "spikes.density", "ttt"):
        assert value_at(path, document) is None


def test_what_is_not_finite_is_null():
    diverged = results(student=ModelResult(perplexity=float("inf")))
    assert json.loads(diverged.to_json(), parse_constant=pytest.fail)["student"]["perplexity"] is None


def test_each_check_shows_name_value_threshold_and_outcome():
    document = json.loads(results(checks=(check("beats", 3.0, "<", 4.0),)).to_json())["checks"][0]
    outcome = {"name": "beats", "value": 3.0, "comparison": "<", "threshold": 4.0, "passed": True}
    assert document == outcome | {"upper": None, "warns": False, "note": ""}


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version_is_one_line(version):
    document = json.loads(results().to_json()) | {"schema_version": version}
    with pytest.raises(RunFolderError, match=r"schema version .*this asnn-goose reads 1") as caught:
        Results.from_json(json.dumps(document))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}'])
def test_what_is_no_results_file_is_one_line(text):
    with pytest.raises(RunFolderError) as caught:
        Results.from_json(text, "run/results.json")
    assert str(caught.value).startswith("run/results.json")
    assert "\n" not in str(caught.value)


def test_unknown_keys_and_wrong_types_are_refused():
    for fields in ({"extra": 1}, {"seed": "1"}, {"compression_ratio": "2"}):
        with pytest.raises(RunFolderError):
            Results.from_json(json.dumps(json.loads(results().to_json()) | fields))


def test_results_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        results().seed = 2
