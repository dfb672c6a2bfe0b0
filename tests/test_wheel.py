"""What users install: the wheel, in an empty environment, does the main job."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from asnn_goose.run_dir import RunDirectory

ROOT = Path(__file__).parents[1]
MOST_BYTES = 15_000_000
SMALL = (
    "training.batch_size=2",
    "evaluation.tokens=2048",
    "student.calibration_tokens=1024",
    "controls=false",
    "samples=1",
)


def run(*command: str | Path, cwd: Path) -> str:
    """What a process prints; it may not fail, and knows nothing of this environment's packages."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    outcome = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    run(*build, cwd=folder)
    return next(folder.glob("asnn_goose-*.whl"))


def test_the_wheel_holds_recipes_teacher_text_and_templates_and_stays_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= MOST_BYTES
    names = zipfile.ZipFile(wheel).namelist()
    for member in (
        "recipes/convert-pocket.yaml", "data/pocket/pocket_train.jsonl.xz", "data/pocket/LICENSE.md",
        "data/pocket/model/model.safetensors", "data/pocket/model/README.md", "report/templates/report.html.jinja",
        "recipes/recorded/v14.3.yaml", "py.typed",
    ):  # fmt: skip
        assert f"asnn_goose/{member}" in names
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "benchmarks/"))]


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_the_wheel_installed_elsewhere_distills(wheel: Path, tmp_path: Path, private_cache: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", "fresh", cwd=tmp_path)
    binaries = tmp_path / "fresh" / "bin"
    install = [sys.executable, "-m", "pip", "--python", binaries / "python", "install", "--quiet", "--no-compile"]
    run(*install, "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    run(binaries / "asnn-goose", "distill", "quickstart", "training.steps=20", *SMALL, "--out", "run", cwd=tmp_path)
    results = RunDirectory.open(tmp_path / "run").read_results()
    assert results.counters.steps_done == 20
    assert results.student.perplexity < results.curves.perplexity.values[0]
