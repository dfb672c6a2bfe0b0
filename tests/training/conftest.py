"""One small recipe for every training test, and one finished run for all that only look at a run."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from asnn_goose.config import Recipe
from asnn_goose.environment import collect_environment
from asnn_goose.presets import recipe_yaml
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training.distill import RunOutcome, distill


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
