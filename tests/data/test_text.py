import json
from pathlib import Path

import datasets
import pytest

from asnn_goose.config_text import HubText, LocalText, MixedText, MixturePart, PocketText, PydocText, TeacherSamples
from asnn_goose.data.documents import ArrowDocuments
from asnn_goose.data.text import held_out_source, load_text, split_documents
from asnn_goose.errors import DataError, HubUnreachableError

LINE = "A line of forty characters, with its end\n"


def documents(count: int) -> list[str]:
    return [f"document {number:04d} " + "x" * (number % 7) for number in range(count)]


@pytest.mark.parametrize("seed", [0, 1, 42])
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.9])
def test_split_loses_nothing_and_repeats_nothing(fraction: float, seed: int) -> None:
    train, held_out = split_documents(documents(100), fraction, seed)
    assert sorted([*train, *held_out]) == documents(100)
    assert list(train) == sorted(train)
    assert list(held_out) == sorted(held_out)


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_held_out_share_is_the_fraction_and_at_most_a_document_more(fraction: float) -> None:
    given = documents(200)
    total, longest = sum(map(len, given)), max(map(len, given))
    held_out = sum(map(len, split_documents(given, fraction, 0)[1]))
    assert fraction * total <= held_out < fraction * total + longest


def test_split_depends_on_the_seed_alone() -> None:
    assert split_documents(documents(100), 0.1, 3) == split_documents(documents(100), 0.1, 3)
    assert split_documents(documents(100), 0.1, 3) != split_documents(documents(100), 0.1, 4)


def test_single_document_is_cut_at_a_line_break() -> None:
    train, held_out = split_documents([LINE * 100], 0.05, 0)
    assert (list(train), list(held_out)) == ([LINE * 95], [LINE * 5])


@pytest.mark.parametrize(
    ("document", "head"),
    [
        ("word " * 20, "word " * 19),
        ("x" * 92 + "\n" + "y z " + "y" * 3, "x" * 92 + "\n"),
        ("x" * 96 + "\n" + "y z", "x" * 96 + "\n"),
        ("x" * 92 + " " + "y" * 7, "x" * 92 + " "),
        ("x" * 50 + "\n" + "y" * 49, "x" * 50 + "\n" + "y" * 44),
        ("あ" * 100, "あ" * 95),
    ],
)
def test_document_is_cut_near_the_border_at_a_line_break_else_a_space(document: str, head: str) -> None:
    train, held_out = split_documents([document], 0.05, 0)
    assert train == [head]
    assert held_out == [document.removeprefix(head)]


def test_long_document_among_short_ones_is_cut_and_last() -> None:
    given = ["short\n", LINE * 1_000, "brief\n"]
    train, held_out = split_documents(given, 0.1, 0)
    assert train[-1] + held_out[-1] == LINE * 1_000
    assert sorted([*train[:-1], *held_out[:-1]]) == ["brief\n", "short\n"]


def test_split_leaves_something_to_train_on() -> None:
    train, held_out = split_documents(["one " * 25, "two " * 25], 0.95, 0)
    assert sum(map(len, held_out)) >= 190
    assert sum(map(len, train)) > 0


def test_table_splits_like_a_list() -> None:
    given = [*documents(50), LINE * 500]
    table = ArrowDocuments(datasets.Dataset.from_dict({"text": given}))
    for seed in range(3):
        expected = split_documents(given, 0.2, seed)
        assert tuple(map(list, split_documents(table, 0.2, seed))) == expected


@pytest.mark.parametrize("given", [[], [""], ["x"], [" x "], ["word", ""]])
def test_text_too_short_to_split_is_refused(given: list[str]) -> None:
    with pytest.raises(DataError, match=r"too short to hold out 5.00%"):
        split_documents(given, 0.05, 0)


def test_evaluation_path_is_what_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("train text")
    (tmp_path / "test.jsonl").write_text(json.dumps({"text": "test text"}))
    data = LocalText(path=tmp_path / "train.txt", evaluation_path=tmp_path / "test.jsonl")
    text = load_text(data, seed=0)
    assert (text.train, text.held_out) == (["train text"], ["test text"])
    assert text.source == f"{tmp_path / 'train.txt'}, held out: {tmp_path / 'test.jsonl'}"


def test_text_held_out_from_itself_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("train text")
    load_text(LocalText(path=tmp_path / "a.txt", evaluation_path=tmp_path / "a.txt"), seed=0)
    assert "evaluation reads what was trained on" in caplog.text


def test_lines_are_split_by_seed_and_joined_by_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(documents(50)))
    text = load_text(LocalText(path=tmp_path / "a.txt", documents="line", held_out_fraction=0.1), seed=5)
    assert sorted([*text.train, *text.held_out]) == documents(50)
    assert text.separator == "\n"
    assert text.source == f"{tmp_path / 'a.txt'}, held out: 10.00% of its characters (seed 5)"


def test_pydoc_is_split_into_whole_documents() -> None:
    text = load_text(PydocText(), seed=0)
    held_out = sum(map(len, text.held_out))
    assert 0.05 <= held_out / (held_out + sum(map(len, text.train))) < 0.1
    assert "\n" not in text.source
    assert text.separator == "\n\n"


def test_hub_rows_that_end_their_lines_are_joined_by_nothing(answering_hub: str) -> None:
    text = load_text(HubText(name=answering_hub), seed=0)
    assert (len(text.train), len(text.held_out), text.separator) == (40, 10, "")
    assert text.source == "hub data set geese/pond, split train, held out: split validation"


@pytest.mark.usefixtures("closed_hub")
def test_unreachable_hub_is_refused() -> None:
    with pytest.raises(HubUnreachableError):
        load_text(HubText(name="wikitext"), seed=0)


def test_a_run_is_evaluated_on_text_that_somebody_wrote() -> None:
    samples = TeacherSamples(prompts=PydocText())
    parts = (MixturePart(weight=1.0, text=PocketText()), MixturePart(weight=1.0, text=samples))
    assert held_out_source(PocketText()) == held_out_source(MixedText(parts=parts)) == PocketText()
    assert held_out_source(samples) == held_out_source(MixedText(parts=parts, held_out_from=1)) == PydocText()
