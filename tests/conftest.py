"""Fixtures that every test may use: a private cache, and a small teacher that was really trained on real text."""

import os
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from asnn_goose.config import Recipe
from asnn_goose.data.pydoc_corpus import pydoc_documents
from asnn_goose.environment import collect_environment
from asnn_goose.presets import recipe_yaml
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training.distill import RunOutcome, distill

# The tests' tensors are tiny: a second thread would only wait for the first.
torch.set_num_threads(1)

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


@pytest.fixture(scope="session")
def other_vocabulary(real_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model with a tokenizer of its own."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([real_text[:20_000]], 300, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>")
    folder = tmp_path_factory.mktemp("other")
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=64, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_recipe(teacher_directory: Path, text_file: Path) -> Callable[..., Recipe]:
    """A recipe of a second or two on the small teacher; keywords replace whole sections' fields."""

    def make(**sections: dict[str, object]) -> Recipe:
        fields: dict[str, dict[str, object]] = {
            "teacher": {"name": str(teacher_directory), "dtype": "float32"},
            "data": {"path": str(text_file)},
            "student": {"mixer": "wkv", "width": 32, "layers": 2, "max_positions": 64},
            "training": {
                "steps": 12, "batch_size": 4, "window": 32, "learning_rate": 5e-3, "warmup_steps": 2,
                "logging_interval": 3, "evaluation_interval": 6, "checkpoint_interval": 4, "precision": "fp32",
            },
            "evaluation": {"kind": "standard", "window": 32, "tokens": 1024},
        }  # fmt: skip
        for name, changes in sections.items():
            fields[name] = {**fields.get(name, {}), **changes}
        return Recipe.model_validate(fields, strict=False)

    return make


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[[Recipe], RunDirectory]:
    """Makes a fresh run folder for a recipe."""

    def make(recipe: Recipe) -> RunDirectory:
        environment = {"recipe": "small", **collect_environment(recipe.training.seed)}
        return RunDirectory.create(tmp_path / "run", recipe_yaml(recipe), environment)

    return make


@pytest.fixture
def quiet_console() -> Console:
    """A console that keeps what it is told: `quiet_console.file.getvalue()`."""
    return Console(file=StringIO(), width=200)


@pytest.fixture(scope="session")
def finished_run(small_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> RunOutcome:
    """One run from start to end, for tests that only read what it left."""
    recipe = small_recipe()
    environment = {"recipe": "small", **collect_environment(recipe.training.seed)}
    folder = RunDirectory.create(tmp_path_factory.mktemp("finished") / "run", recipe_yaml(recipe), environment)
    return distill(recipe, folder, Console(file=StringIO()))
