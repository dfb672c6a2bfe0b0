import mmap

import torch

from asnn_goose.training.memory import memory_bytes, peak_memory_bytes

CPU = torch.device("cpu")
BLOCK_BYTES = 64 * 1024**2


def test_memory_in_use_grows_with_what_is_held() -> None:
    before = memory_bytes(CPU)
    # Fresh pages: an allocator may give out what it kept of memory that was held before.
    with mmap.mmap(-1, BLOCK_BYTES) as held:
        for place in range(0, BLOCK_BYTES, mmap.PAGESIZE):
            held[place] = 1
        assert memory_bytes(CPU) - before >= 0.9 * BLOCK_BYTES


def test_the_peak_is_never_below_what_is_in_use() -> None:
    assert peak_memory_bytes(CPU) >= 0.99 * memory_bytes(CPU)
