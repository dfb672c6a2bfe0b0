import json

import pytest

from asnn_goose.config_validation import ValidationOptions
from asnn_goose.errors import RunFolderError
from asnn_goose.validation_results import (
    CausalUse,
    MatchedSimilarity,
    Replacement,
    Representation,
    SiteInformation,
    TextFacts,
    ValidationResults,
)
from asnn_goose.validation_verdicts import RecordedVerdict, SoundVerdict

TEXT = TextFacts(description="pocket", tokens=64, rows=8, window=8, token_sha256="0" * 64)


def validation(**fields):
    given = {
        "model": "runs/one",
        "teacher": "gpt2",
        "text": TEXT,
        "layer_map": {0: 2, 1: 7},
        "recorded_verdict": RecordedVerdict(passed=False),
        "sound_verdict": SoundVerdict(passed=False),
    }
    return ValidationResults(**(given | fields))


def site(layer=0, site="k", **figures):
    return SiteInformation(layer=layer, site=site, teacher_layer=2, **figures)


def test_a_validation_reads_back_as_it_was_written():
    matrix = Representation(block_outputs=((0.1, None), (0.3, 0.4)))
    whole = validation(information=(site(lag_bits={-1: 0.1, 0: 0.2}, best_lag=0),), representation=matrix)
    assert ValidationResults.from_json(whole.to_json()) == whole


def test_the_order_of_measuring_does_not_show():
    entries = (site(1, "k"), site(0, "v", controls={"b": 0.1, "a": 0.2}), site(0, "k", lag_bits={1: 0.1, -1: 0.2}))
    turned = (site(0, "k", lag_bits={-1: 0.2, 1: 0.1}), site(0, "v", controls={"a": 0.2, "b": 0.1}), site(1, "k"))
    first, second = (
        validation(information=found, layer_map=dict(layers)).to_json()
        for found, layers in ((entries, [(0, 2), (1, 7)]), (turned, [(1, 7), (0, 2)]))
    )
    assert first == second


def test_replacements_and_similarities_have_an_order_of_their_own():
    replaced = [Replacement(site=site, replacement=way) for site in "vk" for way in ("zeroed", "preactivations")]
    found = CausalUse(replacements=tuple(replaced)).replacements
    assert [(entry.site, entry.replacement[0]) for entry in found] == [("k", "p"), ("k", "z"), ("v", "p"), ("v", "z")]
    matched = tuple(MatchedSimilarity(layer=layer, teacher_layer=2, what="k") for layer in (1, 0))
    assert [entry.layer for entry in Representation(matched=matched).matched] == [0, 1]


def test_what_differs_beyond_six_digits_is_the_same_figure():
    assert site(spikes_bits=0.12345678) == site(spikes_bits=0.123457)


def test_what_was_not_measured_or_is_not_finite_is_null_and_nothing_is_capped():
    written = validation(causal=CausalUse(perplexity=1e30), information=(site(spikes_bits=float("nan")),)).to_json()
    document = json.loads(written, parse_constant=pytest.fail)
    assert document["information"][0]["spikes_bits"] is None
    assert document["causal"]["perplexity"] == 1e30


def test_all_that_was_chosen_is_written():
    chosen = ValidationOptions(permutations=99)
    assert json.loads(validation(options=chosen).to_json())["options"] == json.loads(chosen.model_dump_json())


def test_no_time_and_no_machine_is_written():
    assert not {"date", "time", "timestamp", "seconds", "environment"} & set(json.loads(validation().to_json()))


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version_is_one_line(version):
    document = json.loads(validation().to_json()) | {"schema_version": version}
    with pytest.raises(RunFolderError, match=r"schema version .*this asnn-goose reads 1"):
        ValidationResults.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}', '{"schema_version": 1, "extra": 1}'])
def test_what_is_no_validation_is_one_line(text):
    with pytest.raises(RunFolderError) as caught:
        ValidationResults.from_json(text, "run/validation.json")
    assert str(caught.value).startswith("run/validation.json")
    assert "\n" not in str(caught.value)
