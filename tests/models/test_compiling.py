import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

from asnn_goose.models.compiling import compile_or_fall_back


@pytest.mark.usefixtures("failing_compiler")
def test_what_does_not_compile_runs_uncompiled_with_one_warning(caplog):
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    call = compile_or_fall_back(layer, "student")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(call(x), layer(x))
        assert torch.equal(call(x), layer(x))
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings == ["torch.compile failed for the student (no C++ compiler); it runs uncompiled"]


def test_what_compiles_runs_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, dynamic=None: lambda x: module(x) + 1.0)
    assert compile_or_fall_back(nn.Identity(), "teacher")(1.0) == 2.0


@pytest.mark.usefixtures("failing_compiler")
def test_an_error_of_the_module_itself_is_not_hidden(caplog):
    with caplog.at_level(logging.CRITICAL), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compile_or_fall_back(nn.Linear(3, 2), "student")(torch.ones(1, 5))


def test_each_new_shape_is_one_more_graph_and_a_known_one_is_none():
    # In a process of its own: the shape checks of the test run cannot be traced.
    code = """
import torch
from asnn_goose.models.compiling import compile_or_fall_back, compiled_graphs
double = compile_or_fall_back(lambda x: 2 * x, "test", dynamic=False)
counts = [compiled_graphs()]
for size in (3, 3, 5):
    double(torch.ones(size))
    counts.append(compiled_graphs())
print(counts)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 1, 1, 2]"
