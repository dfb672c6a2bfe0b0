import datasets
import pytest

from asnn_goose.data.documents import (
    ArrowDocuments,
    DocumentUnit,
    choose_documents,
    divide_text,
    document_separator,
    joined_rows,
)

TEXT = " First line \nsecond\n\n \t\n\nThird.\n"


@pytest.fixture
def table() -> ArrowDocuments:
    texts = [f"document {number}" for number in range(2_500)]
    return ArrowDocuments(datasets.Dataset.from_dict({"text": texts}))


def test_lines_are_kept_as_they_stand_and_blank_ones_dropped() -> None:
    assert divide_text(TEXT, "line") == [" First line ", "second", "Third."]


def test_paragraphs_stand_between_blank_lines() -> None:
    assert divide_text(TEXT, "paragraph") == [" First line \nsecond", "Third."]


@pytest.mark.parametrize("unit", ["file", None])
def test_file_is_the_whole_text(unit: DocumentUnit | None) -> None:
    assert divide_text(TEXT, unit) == [TEXT]


def test_line_separators_of_unicode_do_not_end_a_line() -> None:
    assert divide_text("one\u2028line\x85still\x0cit", "line") == ["one\u2028line\x85still\x0cit"]


@pytest.mark.parametrize(
    ("documents", "unit", "separator"),
    [
        (["a", "b"], "line", "\n"),
        (["a", "b"], "paragraph", "\n\n"),
        (["a", "b"], None, "\n\n"),
        (["", "a\n", "b\n"], None, ""),
        ([], None, "\n\n"),
    ],
)
def test_separator_gives_the_text_back(documents: list[str], unit: DocumentUnit | None, separator: str) -> None:
    assert document_separator(documents, unit) == separator


def test_table_is_read_like_a_list(table: ArrowDocuments) -> None:
    assert len(table) == 2_500
    assert (table[0], table[-1]) == ("document 0", "document 2499")
    assert table[998:1002] == ["document 998", "document 999", "document 1000", "document 1001"]
    assert list(table) == [f"document {number}" for number in range(2_500)]


def test_chosen_documents_of_a_table_are_those_of_a_list(table: ArrowDocuments) -> None:
    places, added = [3, 1_700, 2_499], ["cut"]
    expected = ["document 3", "document 1700", "document 2499", "cut"]
    assert list(choose_documents(table, places, added)) == expected
    assert choose_documents(list(table), places, added) == expected


def test_joined_rows_end_their_lines_and_none_is_lost():
    rows = [" = Goose = \n", "", "A bird", "\n", "It flies.\n"]
    assert joined_rows(rows, 1) == rows
    assert joined_rows(rows, 2) == [" = Goose = \n", "A bird\n\n", "It flies.\n"]
    assert joined_rows(rows, 9) == [" = Goose = \nA bird\n\nIt flies.\n"]
