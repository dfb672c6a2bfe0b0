"""Fixtures that every test may use: a private cache, and a small teacher that was really trained on real text."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from asnn_goose.data.pydoc_corpus import pydoc_documents

VOCABULARY = 384
TEACHER_STEPS, TEACHER_ROWS, TEACHER_WINDOW = 120, 16, 64


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache directory of the test session's own, so that no test reads or fills the user's."""
    before = os.environ.get("ASNN_GOOSE_CACHE")
    folder = tmp_path_factory.mktemp("cache")
    os.environ["ASNN_GOOSE_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["ASNN_GOOSE_CACHE"]
    else:
        os.environ["ASNN_GOOSE_CACHE"] = before


@pytest.fixture(scope="session")
def real_text() -> str:
    """About 300,000 characters of English prose and signatures: part of Python's own documentation."""
    return "\n\n".join(pydoc_documents())[:300_000]


@pytest.fixture(scope="session")
def text_file(real_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That text as a .txt file."""
    path = tmp_path_factory.mktemp("text") / "real.txt"
    path.write_text(real_text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def teacher_directory(real_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer GPT-2 trained for a few seconds on real text and saved by save_pretrained."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([real_text], VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    ids = torch.tensor(tokenizer(real_text)["input_ids"])
    model = train_small_gpt2(ids)
    folder = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_small_gpt2(ids: torch.Tensor) -> GPT2LMHeadModel:
    """Train until the loss is far below that of guessing, deterministically."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=256, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        )
        model = GPT2LMHeadModel(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        starts = torch.randint(0, len(ids) - TEACHER_WINDOW, (TEACHER_STEPS, TEACHER_ROWS))
        for row_starts in starts:
            batch = torch.stack([ids[start : start + TEACHER_WINDOW] for start in row_starts])
            loss = model(input_ids=batch, labels=batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()
