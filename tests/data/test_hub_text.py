import time
from pathlib import Path

import datasets
import pytest

from asnn_goose.config_text import HubText
from asnn_goose.data.documents import ArrowDocuments
from asnn_goose.data.hub_text import hub_documents
from asnn_goose.errors import DataError, HubUnreachableError

UNREACHABLE_SECONDS = 8.0


@pytest.mark.usefixtures("closed_hub")
def test_unreachable_hub_is_one_line_with_the_ways_that_need_none() -> None:
    started = time.monotonic()
    with pytest.raises(HubUnreachableError) as caught:
        hub_documents(HubText(name="wikitext", subset="wikitext-2-raw-v1"))
    assert time.monotonic() - started < UNREACHABLE_SECONDS
    message = str(caught.value)
    assert "\n" not in message
    for part in ("'wikitext'", "data.path=FILE", "data.name=pocket", "HF_HUB_OFFLINE=1"):
        assert part in message


@pytest.mark.usefixtures("closed_hub")
def test_unreachable_hub_says_nothing_else(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(HubUnreachableError):
        hub_documents(HubText(name="wikitext", streaming=True, max_documents=3))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


@pytest.mark.usefixtures("closed_hub")
@pytest.mark.parametrize("streaming", [False, True])
def test_cached_data_set_is_read_when_the_hub_is_unreachable(cache: Path, streaming: bool) -> None:
    write_hub_cache(cache / "huggingface", "geese/flock", {"train": ["one", "two"], "validation": ["three"]})
    train, held_out = hub_documents(HubText(name="geese/flock", streaming=streaming, max_documents=5))
    assert list(train) == ["one", "two"]
    assert held_out is not None
    assert list(held_out) == ["three"]


@pytest.mark.usefixtures("closed_hub")
def test_subset_that_is_not_cached_names_those_that_are(cache: Path) -> None:
    write_hub_cache(cache / "huggingface", "geese/flock", {"train": ["one"]})
    with pytest.raises(DataError, match=r"'geese/flock', subset 'other', split 'train'.*default"):
        hub_documents(HubText(name="geese/flock", subset="other"))


def write_hub_cache(directory: Path, name: str, splits: dict[str, list[str]]) -> None:
    """Lay out splits as the data set library leaves them in its cache after a download."""
    target = directory / name.replace("/", "___") / "default" / "0.0.0" / "0123456789abcdef"
    target.mkdir(parents=True, exist_ok=True)
    described = datasets.SplitDict(dataset_name=name.rpartition("/")[2])
    for split, texts in splits.items():
        path = target / f"{described.dataset_name}-{split}.arrow"
        with datasets.arrow_writer.ArrowWriter(path=str(path)) as writer:
            for text in texts:
                writer.write({"text": text})
            writer.finalize()
        described.add(datasets.SplitInfo(name=split, num_examples=len(texts)))
    features = datasets.Features({"text": datasets.Value("string")})
    info = datasets.DatasetInfo(features=features, splits=described, config_name="default")
    info.write_to_directory(str(target))


def test_table_is_read_from_the_disk(answering_hub: str) -> None:
    train, held_out = hub_documents(HubText(name=answering_hub))
    assert isinstance(train, ArrowDocuments)
    assert (len(train), train[39]) == (40, "train 39.\nIts second line.\n")
    assert held_out is not None
    assert list(held_out) == [f"validation {row}.\nIts second line.\n" for row in range(10)]


def test_max_documents_bounds_the_training_split_alone(answering_hub: str) -> None:
    train, held_out = hub_documents(HubText(name=answering_hub, max_documents=3))
    assert [document.partition(".")[0] for document in train] == ["train 0", "train 1", "train 2"]
    assert held_out is not None
    assert len(held_out) == 10


def test_streaming_reads_so_many_documents_and_the_share_to_evaluate(answering_hub: str) -> None:
    data = HubText(name=answering_hub, streaming=True, max_documents=20, held_out_fraction=0.2)
    train, held_out = hub_documents(data)
    assert held_out is not None
    assert (len(train), len(held_out)) == (20, 4)
    assert train[19] == "train 19.\nIts second line.\n"


def test_no_evaluation_split_leaves_the_split_to_the_caller(answering_hub: str) -> None:
    train, held_out = hub_documents(HubText(name=answering_hub, evaluation_split=None))
    assert held_out is None
    assert len(train) == 40


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_divide_into_lines(answering_hub: str, streaming: bool) -> None:
    data = HubText(name=answering_hub, documents="line", max_documents=2, streaming=streaming)
    train, _ = hub_documents(data)
    assert list(train) == ["train 0.", "Its second line.", "train 1.", "Its second line."]
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize("streaming", [False, True])
def test_consecutive_rows_may_be_one_document(answering_hub: str, streaming: bool) -> None:
    data = HubText(name=answering_hub, rows_per_document=2, max_documents=5, streaming=streaming)
    train, _ = hub_documents(data)
    assert [document.count("Its second line.\n") for document in train] == [2, 2, 1]
    assert train[1] == "train 2.\nIts second line.\ntrain 3.\nIts second line.\n"
    lines, _ = hub_documents(data.model_copy(update={"documents": "line"}))
    assert len(lines) == 10


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("subset", "other", r"subset 'other'.*[Aa]vailable.*default"),
        ("train_split", "training", r"split 'training'.*(train.*validation|Bad split)"),
        ("text_field", "body", r"no column 'body', its columns are 'text', 'number'"),
        ("text_field", "number", r"'number', not (a )?string"),
    ],
)
def test_unknown_part_is_refused_in_one_line(
    answering_hub: str, field: str, value: str, said: str, streaming: bool
) -> None:
    data = HubText.model_validate({"name": answering_hub, field: value, "streaming": streaming, "max_documents": 5})
    with pytest.raises(DataError, match=said) as caught:
        hub_documents(data)
    assert "\n" not in str(caught.value)


def test_name_of_a_folder_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wikitext").mkdir()
    with pytest.raises(DataError, match=r"give data.path=wikitext"):
        hub_documents(HubText(name="wikitext"))
