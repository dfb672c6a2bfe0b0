"""What two processes, which talk through gloo, leave behind: `process_pair.py` does their jobs once for all tests."""

import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from asnn_goose.config import Recipe
from asnn_goose.presets import recipe_yaml
from asnn_goose.run_dir import RunDirectory
from asnn_goose.training.distill import distill
from asnn_goose.training.loop import TrainingLoop

SCRIPT = Path(__file__).with_name("process_pair.py")
STEPS, LONGEST_SECONDS = 8, 240


@dataclass
class ProcessPair:
    """The jobs of two processes, what they found, and runs of one process to compare with."""

    folder: Path
    script: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(**runpy.run_path(str(SCRIPT))))
    jobs: list[dict[str, Any]] = field(default_factory=list)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    alone: dict[str, Any] = field(default_factory=dict)

    def add_run(self, name: str, recipe: Recipe, **disturbance: int) -> RunDirectory:
        """Plan the run of a recipe, in a run folder as the command line makes it."""
        folder = RunDirectory.create(
            self.folder / name, recipe_yaml(recipe), {"recipe": "small", "platform_kind": "local"}
        )
        fields = recipe.model_dump(mode="json")
        self.jobs.append({"name": name, "kind": "run", "recipe": fields, "out": str(folder.path), **disturbance})
        self.recipes[name] = recipe
        return folder

    def do_together(self) -> None:
        """Have two processes do the jobs; what a failing one said is in the error."""
        (self.folder / "jobs.json").write_text(json.dumps([{**job, "port": free_port()} for job in self.jobs]))
        # Without a GPU even where there is one: two processes need two, or gloo.
        shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
                  "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
        with ExitStack() as opened, ThreadPoolExecutor(2) as waiting:
            said = [opened.enter_context((self.folder / f"said-{rank}.txt").open("w+")) for rank in range(2)]
            started = [
                subprocess.Popen(
                    [sys.executable, str(SCRIPT), str(self.folder)], stdout=said[rank], stderr=subprocess.STDOUT,
                    env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                )
                for rank in range(2)
            ]  # fmt: skip
            for ended in as_completed([waiting.submit(process.wait, LONGEST_SECONDS) for process in started]):
                # Where one has failed, the other would wait for it.
                if ended.exception() or ended.result():
                    for process in started:
                        process.kill()
            for process in started:
                process.wait()
        texts = [(self.folder / f"said-{rank}.txt").read_text() for rank in range(2)]
        assert [process.returncode for process in started] == [0, 0], "\n".join(texts)

    def run_alone(self, name: str, recipe: Recipe) -> None:
        """A run, or the rest of one, in this process alone, its rows noted."""
        rows: list[tuple[int, list[str]]] = []
        with self.script.noted_rows(rows):
            distill(recipe, RunDirectory.open(self.folder / name), Console(file=StringIO()))
        self.alone[name] = {"rows": rows}

    def found(self, job: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """What each process found at a job."""
        first, second = (json.loads((self.folder / f"{job}-{rank}.json").read_text()) for rank in range(2))
        return first, second

    def run(self, job: str) -> RunDirectory:
        """The run folder of a job."""
        return RunDirectory(self.folder / job)

    def figures(self, job: str, name: str) -> list[float]:
        """A metric's values over the run of a job."""
        return [line[name] for line in self.run(job).metrics() if name in line]

    def rows(self, job: str) -> list[str]:
        """The rows that both processes took at a job, in order."""
        return in_order(*self.found(job))

    def rows_alone(self, job: str) -> list[str]:
        """The rows that this process took alone in a job's run folder."""
        return in_order(self.alone[job])


def in_order(*found: dict[str, Any]) -> list[str]:
    """All rows that were noted, by their number."""
    return [row for _, rows in sorted(batch for entry in found for batch in entry["rows"]) for row in rows]


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def spread_recipe(small_recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """Makes short recipes; a step takes eight rows on two processes, or of two micro-batches on one."""

    def make(accumulation: int, sharding: str = "none", **sections: Any) -> Recipe:
        training = {
            "steps": STEPS, "accumulation": accumulation, "sharding": sharding, "logging_interval": 2,
            "evaluation_interval": 4, "checkpoint_interval": 4, **sections.pop("training", {}),
        }  # fmt: skip
        made = small_recipe(training=training, evaluation={"tokens": 256}).model_dump(mode="json")
        heat = {"temperature": {"kind": "learned", "learning_rate": 0.1}}
        return Recipe.model_validate({**made, "samples": 0, "objective": heat, **sections}, strict=False)

    return make


@pytest.fixture(scope="session")
def process_pair(spread_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> ProcessPair:
    """All jobs done, by two processes and by one."""
    pair = ProcessPair(tmp_path_factory.mktemp("pair"))
    for mixer, tied, kinds in (("goose", True, ["align", "distill"]), ("wkv", False, ["distill"])):
        pair.jobs.append(
            {"name": f"shards of {mixer}", "kind": "compare shards", "mixer": mixer, "tied": tied, "kinds": kinds}
        )
    pair.jobs.append({"name": "replays", "kind": "compare replays", "mixer": "goose"})
    two, shards = spread_recipe(1), spread_recipe(1, "fsdp2")
    pair.add_run("replicated", two)
    pair.add_run("sharded", shards)
    pair.add_run("stopped", two, signal=2)
    pair.add_run("stopped sharded", shards, signal=2)
    pair.add_run("lost", two, lost=3)
    begun_alone = pair.add_run("taken over", spread_recipe(2, "fsdp2"))
    with pair.script.signalled_at(3):
        assert distill(pair.recipes["taken over"], begun_alone, Console(file=StringIO())).results is None
    stages = [{"kind": "align", "share": 1, "train": "new"}, {"kind": "align", "name": "mixers", "share": 1},
              {"kind": "distill", "share": 1}]  # fmt: skip
    student = {"mixer": "goose", "keep_layers": 2, "calibration_tokens": 512}
    training = {"steps": 3, "logging_interval": 1, "learning_rate": 1e-4}
    for name, sharding in (("staged", "none"), ("staged sharded", "fsdp2")):
        pair.add_run(name, spread_recipe(1, sharding, training=training, student=student, stages=stages))
    hardest_last = {"pretraining": {"steps": 2}, "batches": 4, "pacing": {"kind": "step", "parts": 2}}
    pair.add_run("from easy to hard", spread_recipe(1, curriculum=hardest_last))
    pair.do_together()
    pair.add_run("alone", spread_recipe(2))
    pair.add_run("easy to hard alone", spread_recipe(2, curriculum=hardest_last))
    for name in ("alone", "stopped", "stopped sharded", "easy to hard alone"):
        pair.run_alone(name, pair.recipes[name])
    return pair


@pytest.fixture
def run_killed_at(
    monkeypatch: pytest.MonkeyPatch, quiet_console: Console
) -> Callable[[Recipe, RunDirectory, int], None]:
    """Trains a recipe in a folder until it dies before the step after so many; whoever goes on with it lives."""
    original = TrainingLoop._train_step

    def run(recipe: Recipe, folder: RunDirectory, step: int) -> None:
        def die(loop: TrainingLoop) -> None:
            if loop.state.step == step:
                raise SystemExit("killed")
            original(loop)

        with monkeypatch.context() as patches:
            patches.setattr(TrainingLoop, "_train_step", die)
            with pytest.raises(SystemExit):
                distill(recipe, folder, quiet_console)

    return run
