import gc
import importlib
import os
import warnings

import pytest

from asnn_goose.cli_shared import importing, make_console, quiet_libraries


def test_results_and_what_is_none_go_to_different_streams(capsys):
    make_console().print("result")
    make_console(stderr=True).print("progress")
    assert capsys.readouterr() == ("result\n", "progress\n")


def test_libraries_are_quiet_and_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    with warnings.catch_warnings():
        quiet_libraries()
    assert (os.environ["TRANSFORMERS_VERBOSITY"], os.environ["TOKENIZERS_PARALLELISM"]) == ("info", "true")


def test_while_modules_are_imported_nobody_looks_for_garbage_and_afterwards_not_among_them():
    standing = gc.get_freeze_count()
    try:
        with importing():
            assert not gc.isenabled()
        with pytest.raises(ModuleNotFoundError), importing():
            importlib.import_module("asnn_goose.nowhere")
        assert gc.isenabled()
        assert gc.get_freeze_count() > standing
    finally:
        gc.unfreeze()
