"""Fixtures that every test may use: a private cache, the pocket teacher, real text, and one run from start to end."""

import os
from pathlib import Path

# Without a GPU, Triton's kernels run in its interpreter, which Triton decides when torch imports it.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from collections.abc import Callable, Iterator
from io import StringIO

import pytest
import torch
from rich.console import Console
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from asnn_goose.config import Recipe
from asnn_goose.data.pocket import POCKET_TEACHER, pocket_documents
from asnn_goose.environment import collect_environment
from asnn_goose.models.teacher import Teacher, load_teacher
from asnn_goose.presets import recipe_yaml
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training.distill import RunOutcome, distill

# The tests' tensors are tiny: a second thread would only wait for the first.
torch.set_num_threads(1)


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
def kernel_device() -> str:
    """Where Triton's kernels run in this session: on the GPU, or on the CPU in its interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def real_text() -> str:
    """About 300,000 characters of stories and explanations: text of the kind that the teacher knows."""
    return "\n\n".join(pocket_documents("held_out"))[:300_000]


@pytest.fixture(scope="session")
def text_file(real_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That text as a .txt file."""
    path = tmp_path_factory.mktemp("text") / "real.txt"
    path.write_text(real_text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def teacher_directory() -> Path:
    """The pocket teacher: a GPT-2 of 4 million weights that knows how to tell a story."""
    return POCKET_TEACHER


@pytest.fixture(scope="session")
def teacher() -> Teacher:
    """That teacher, loaded."""
    return load_teacher("pocket", torch.float32, "cpu")


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
            # Another kind of text has fields of its own.
            kept = {} if name == "data" else fields.get(name, {})
            fields[name] = {**kept, **changes}
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
def trained_run(small_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> RunOutcome:
    """A student that took over the teacher's weights and learned for ten seconds: for tests that need a trained one."""
    recipe = small_recipe(
        data={"name": "pocket"},
        student={
            "initialization": "teacher", "width": 256, "layers": 4, "mlp": "gelu", "max_positions": 512,
        },
        objective={"temperature": {"kind": "fixed", "value": 1.0}},
        training={
            "steps": 60, "batch_size": 8, "window": 64, "learning_rate": 2e-3, "warmup_steps": 5,
            "logging_interval": 20, "evaluation_interval": 30, "checkpoint_interval": 60,
        },
        evaluation={"window": 64, "tokens": 4096},
    )  # fmt: skip
    environment = {"recipe": "trained", **collect_environment(recipe.training.seed)}
    folder = RunDirectory.create(tmp_path_factory.mktemp("trained") / "run", recipe_yaml(recipe), environment)
    return distill(recipe, folder, Console(file=StringIO()))


@pytest.fixture(scope="session")
def finished_run(small_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> RunOutcome:
    """One run from start to end, for tests that only read what it left."""
    recipe = small_recipe()
    environment = {"recipe": "small", **collect_environment(recipe.training.seed)}
    folder = RunDirectory.create(tmp_path_factory.mktemp("finished") / "run", recipe_yaml(recipe), environment)
    return distill(recipe, folder, Console(file=StringIO()))


@pytest.fixture
def failing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile as it is on a machine without a compiler: the first call raises, with a long text."""

    class Compiled(torch.nn.Module):
        """What torch.compile gives for a module as well as a function."""

        def forward(self, *_arguments: object, **_options: object) -> None:
            """Fail as late as torch.compile does."""
            raise RuntimeError("no C++ compiler\nand forty lines more")

    monkeypatch.setattr(torch, "compile", lambda _module, **_options: Compiled())
