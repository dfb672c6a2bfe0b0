from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from asnn_goose.data import hub_text

CLOSED_ENDPOINT = "http://127.0.0.1:9"
"""The discard port of this machine, where nothing listens."""

SENTENCES = [
    "The goose flies over the quiet lake.",
    "A spike is minus one, zero or one, and nothing else.",
    "Tokens are numbers: 12, 345 and 6789 are written with several.",
    "Ganz kurz; déjà vu, naïve café.",
]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASNN_GOOSE_CACHE", str(directory))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", directory / "huggingface")
        yield directory


def byte_level_tokenizer(eos_token: str | None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[] if eos_token is None else [eos_token],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos_token, model_max_length=16)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_level_tokenizer("<|endoftext|>")


@pytest.fixture(scope="session")
def tokenizer_without_eos() -> PreTrainedTokenizerBase:
    return byte_level_tokenizer(None)


@pytest.fixture
def closed_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED_ENDPOINT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


@pytest.fixture
def answering_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub that answers and holds one data set, whose name is returned, read from a folder by the real library."""
    repository = tmp_path / "repository" / "data"
    repository.mkdir(parents=True)
    for split, rows in {"train": 40, "validation": 10}.items():
        texts = [f"{split} {row}.\nIts second line.\n" for row in range(rows)]
        table = pyarrow.table({"text": texts, "number": list(range(rows))})
        pyarrow.parquet.write_table(table, repository / f"{split}.parquet")
    load: Callable[..., object] = datasets.load_dataset
    monkeypatch.setattr(hub_text, "hub_answers", lambda: True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, *rest, **options: load(str(repository.parent), *rest, **options)
    )
    return "geese/pond"
