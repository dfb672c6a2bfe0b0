import pytest
from pydantic import TypeAdapter, ValidationError

from asnn_goose.config_text import (
    Data,
    HubText,
    LocalText,
    MixedText,
    Protocol,
    PydocText,
    RecordedProtocol,
    TeacherSamples,
    data_tag,
)

PYDOC = {"name": "pydoc"}
SAMPLES = {"source": "teacher_samples", "prompts": PYDOC}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        (PYDOC, PydocText),
        ({"name": "wikitext"}, HubText),
        ({"path": "a.txt"}, LocalText),
        (SAMPLES, TeacherSamples),
        ({"source": "mixture", "parts": [{"weight": 1, "text": SAMPLES}]}, MixedText),
    ],
)
def test_a_source_is_told_by_what_names_it(fields: dict[str, object], kind: type) -> None:
    assert isinstance(TypeAdapter(Data).validate_python(fields, strict=False), kind)


def test_a_section_and_its_fields_have_the_same_tag() -> None:
    assert data_tag(PydocText()) == data_tag({"name": "pydoc"}) == "pydoc"
    assert data_tag(HubText(name="wikitext")) == data_tag({"name": "wikitext"}) == "name"
    assert data_tag(3) is None


def mixture(**fields: object) -> MixedText:
    parts = [{"weight": 3, "text": PYDOC}, {"weight": 1, "text": SAMPLES}]
    return MixedText.model_validate({"parts": parts, **fields}, strict=False)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"parts": []}, "at least one part"),
        ({"parts": [{"weight": 0, "text": PYDOC}]}, "greater than 0"),
        ({"parts": [{"weight": 1, "text": PYDOC}, {"weight": 1e-4, "text": PYDOC}]}, "at least 1/1000"),
        ({"parts": [{"weight": 1, "text": {"source": "mixture", "parts": []}}]}, "go into the outer one"),
        ({"held_out_from": 2}, "give 0 to 1"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        mixture(**fields)


def test_prompts_must_leave_room_for_what_the_teacher_writes() -> None:
    with pytest.raises(ValidationError, match="less than their length, got 8 of 8"):
        TeacherSamples(prompts=PydocText(), length=8)


def test_prompts_are_text_that_somebody_wrote() -> None:
    with pytest.raises(ValidationError, match="prompts of teacher_samples need"):
        TypeAdapter(TeacherSamples).validate_python({"prompts": SAMPLES})


def test_streaming_without_a_bound_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_documents"):
        HubText(name="wikitext", streaming=True)


def test_nothing_can_be_held_out_whole() -> None:
    with pytest.raises(ValidationError, match="less than 1"):
        PydocText(held_out_fraction=1.0)


def test_a_protocol_is_told_by_its_kind() -> None:
    found = TypeAdapter(Protocol).validate_python({"kind": "recorded"})
    assert found == RecordedProtocol(window=256, max_line_tokens=512, tokens=None)
