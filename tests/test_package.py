import subprocess
import sys

import pytest

import asnn_goose

KNOWS_THE_STUDENT = """
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
shape = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1}
config = AutoConfig.for_model("asnn_goose", **shape)
print(type(config).__name__, type(AutoModel.from_config(config)).__name__)
print(type(AutoModelForCausalLM.from_config(config)).__name__)
"""


def run_python(code):
    outcome = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout.split()


@pytest.mark.parametrize("imports", ["import asnn_goose", "import transformers.models.auto.modeling_auto, asnn_goose"])
def test_the_auto_classes_know_the_student_in_either_import_order(imports):
    assert run_python(imports + KNOWS_THE_STUDENT) == ["GooseConfig", "GooseModel", "GooseForCausalLM"]


def test_importing_the_package_imports_no_heavy_library():
    heavy = "{'torch', 'transformers', 'numpy', 'datasets', 'accelerate'}"
    assert run_python(f"import asnn_goose, sys; print(sorted({heavy} & set(sys.modules)))") == ["[]"]


@pytest.mark.parametrize("name", ["GooseConfig", "GooseForCausalLM", "RecurrentCache"])
def test_public_classes_come_by_their_name(name):
    assert getattr(asnn_goose, name).__name__ == name


def test_every_announced_name_exists():
    assert all(hasattr(asnn_goose, name) for name in asnn_goose.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Duck'"):
        asnn_goose.Duck  # noqa: B018
