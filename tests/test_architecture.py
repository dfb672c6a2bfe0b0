"""The house rules that a machine can check: layers, budgets, mirrored tests, light imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "asnn_goose"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py"))
MOST_LINES, MOST_BODY_LINES, MOST_KERNEL_BODY_LINES = 300, 50, 120

# A module imports from its own layer and from layers to its right.
LAYERS = [
    {"cli", "doctor"},
    {"cli_validate"},
    {"cli_shared"},
    {"training"},
    {"evaluation"},
    {"inference"},
    {"models", "objectives", "data"},
    {"spikes"},
    {"information"},
    {"kernels"},
    {"report"},
    {"environment", "run_dir", "presets"},
    {
        "overrides",
        "scales",
        "recipe_errors",
        "results",
        "recorded",
        "checks",
        "measurements",
        "health",
        "validation_results",
        "validation_verdicts",
    },
    {"config"},
    {"config_training", "config_curriculum", "config_validation"},
    {"config_objective"},
    {"config_features", "config_temperature"},
    {"config_schedules"},
    {"config_student", "config_recorded"},
    {"config_threshold"},
    {"config_text"},
    {"errors"},
]


def layer_of(module: str) -> int:
    """Index of the layer a dotted module below asnn_goose belongs to."""
    first = module.split(".")[0]
    return next(index for index, names in enumerate(LAYERS) if first in names)


def dotted(path: Path) -> str:
    """A source file as a dotted module below asnn_goose."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def imported_modules(path: Path) -> set[str]:
    """Modules of asnn_goose that a file imports, dotted below asnn_goose."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asnn_goose."):
            found.add(node.module.removeprefix("asnn_goose."))
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("asnn_goose.")]
            found |= {name.removeprefix("asnn_goose.") for name in names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_imports_only_downwards(path: Path) -> None:
    upwards = {name for name in imported_modules(path) if layer_of(name) < layer_of(dotted(path))}
    assert not upwards


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_file_and_its_functions_stay_within_their_budget(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    most = MOST_KERNEL_BODY_LINES if "kernels" in path.parts else MOST_BODY_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert node.end_lineno - first.lineno + 1 <= most, node.name


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_has_its_test_file_at_the_same_place(path: Path) -> None:
    relative = path.relative_to(SOURCE)
    assert (ROOT / "tests" / relative.parent / f"test_{relative.name}").is_file()


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_every_public_name_is_documented(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_every_package_is_named_in_architecture_md() -> None:
    described = (ROOT / "ARCHITECTURE.md").read_text()
    missing = [path.name for path in MODULES if path.name not in described]
    assert not missing


@pytest.mark.parametrize(
    "statement",
    [
        "import asnn_goose.config",
        "import asnn_goose.results",
        "import asnn_goose.run_dir",
        "import asnn_goose.report.page",
        "import sys; sys.argv = ['asnn-goose', '--help']\nfrom asnn_goose.cli import main\n"
        "try: main()\nexcept SystemExit: pass",
    ],
)
def test_light_modules_and_help_load_neither_torch_nor_transformers(statement: str) -> None:
    code = f"{statement}\nimport sys\nassert not {{'torch', 'transformers'}} & set(sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
