import pytest
from pydantic import TypeAdapter, ValidationError

from asnn_goose.config_student import GooseStudent, Spikes, Student, WkvStudent


@pytest.mark.parametrize(("mixer", "choice"), [("wkv", WkvStudent), ("goose", GooseStudent)])
def test_students_are_told_apart_by_their_mixer(mixer, choice):
    assert type(TypeAdapter(Student).validate_python({"mixer": mixer})) is choice


@pytest.mark.parametrize("kept", ["half", 0, -1, [1.5]])
def test_layers_are_kept_by_word_number_or_list(kept):
    with pytest.raises(ValidationError):
        GooseStudent.model_validate_json(f'{{"mixer": "goose", "keep_layers": {str(kept)!r}}}'.replace("'", '"'))


def test_a_student_without_sites_is_the_dense_twin():
    assert Spikes(sites=()).sites == ()
