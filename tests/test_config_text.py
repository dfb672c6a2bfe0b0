import pytest
from pydantic import TypeAdapter, ValidationError

from asnn_goose.config_text import Data, HubText, LocalText, Protocol, PydocText, RecordedProtocol, data_tag


@pytest.mark.parametrize(
    ("fields", "kind"),
    [({"name": "pydoc"}, PydocText), ({"name": "wikitext"}, HubText), ({"path": "a.txt"}, LocalText)],
)
def test_a_source_is_told_by_what_names_it(fields: dict[str, str], kind: type) -> None:
    assert isinstance(TypeAdapter(Data).validate_python(fields, strict=False), kind)


def test_a_section_and_its_fields_have_the_same_tag() -> None:
    assert data_tag(PydocText()) == data_tag({"name": "pydoc"}) == "pydoc"
    assert data_tag(HubText(name="wikitext")) == data_tag({"name": "wikitext"}) == "name"
    assert data_tag(3) is None


def test_streaming_without_a_bound_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_documents"):
        HubText(name="wikitext", streaming=True)


def test_nothing_can_be_held_out_whole() -> None:
    with pytest.raises(ValidationError, match="less than 1"):
        PydocText(held_out_fraction=1.0)


def test_a_protocol_is_told_by_its_kind() -> None:
    found = TypeAdapter(Protocol).validate_python({"kind": "recorded"})
    assert found == RecordedProtocol(window=256, max_line_tokens=512, tokens=None)
