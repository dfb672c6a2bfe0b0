import builtins
import importlib
import sys

import pytest
import torch

from asnn_goose.errors import MachineError


def test_without_numba_it_says_how_to_install_it(monkeypatch):
    real = builtins.__import__

    def without_numba(name, *arguments, **keywords):
        if name == "numba":
            raise ImportError("No module named 'numba'")
        return real(name, *arguments, **keywords)

    monkeypatch.delitem(sys.modules, "asnn_goose.kernels.numba_runtime", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_numba)
    with pytest.raises(MachineError, match=r"pip install 'asnn-goose\[cpu\]'"):
        importlib.import_module("asnn_goose.kernels.numba_runtime")


def test_a_kernel_runs_on_the_threads_of_torch_and_leaves_numbas_setting():
    runtime = pytest.importorskip("asnn_goose.kernels.numba_runtime", exc_type=MachineError)
    seen, before, threads = [], runtime.numba.get_num_threads(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        runtime.run_kernel(lambda: seen.append(runtime.numba.get_num_threads()))
    finally:
        torch.set_num_threads(threads)
    assert seen == [1]
    assert runtime.numba.get_num_threads() == before


def test_an_array_is_the_tensors_own_memory_where_it_is_in_order():
    runtime = pytest.importorskip("asnn_goose.kernels.numba_runtime", exc_type=MachineError)
    tensor = torch.arange(6.0).reshape(2, 3)
    runtime.as_array(tensor)[0, 0] = 7.0
    assert tensor[0, 0] == 7.0
    assert runtime.as_array(tensor.T).flags.c_contiguous
