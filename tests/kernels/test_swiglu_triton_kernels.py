import importlib
import sys

import pytest

from asnn_goose.errors import MachineError


def test_without_triton_the_kernels_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "asnn_goose.kernels.swiglu_triton_kernels", raising=False)
    with pytest.raises(MachineError, match="swiglu needs triton"):
        importlib.import_module("asnn_goose.kernels.swiglu_triton_kernels")
