import ctypes
import subprocess
import sys

import pytest

from asnn_goose import host_memory
from asnn_goose.host_memory import keep_large_blocks

KEPT = """
from pathlib import Path
from asnn_goose.host_memory import keep_large_blocks
if KEEP:
    assert keep_large_blocks()
import torch

def resident_pages():
    return int(Path("/proc/self/statm").read_text().split()[1])

torch.ones(2**10)
before = resident_pages()
blocks = [torch.ones(2**22) for _ in range(6)]
most = resident_pages()
del blocks
print((resident_pages() - before) / (most - before))
"""


def kept_share(keep):
    code = f"KEEP = {keep}\n{KEPT}"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt, as glibc has")
def test_blocks_that_are_freed_stay_with_the_process():
    assert kept_share(keep=True) > 0.9
    assert kept_share(keep=False) < 0.5


def test_where_the_c_library_has_no_such_setting_nothing_happens(monkeypatch):
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: object())
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert not keep_large_blocks()
    assert host_memory.os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
