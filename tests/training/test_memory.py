import torch

from asnn_goose.training.memory import memory_bytes, peak_memory_bytes

CPU = torch.device("cpu")
BLOCK_BYTES = 64 * 1024**2


def test_memory_in_use_grows_with_what_is_held() -> None:
    before = memory_bytes(CPU)
    held = torch.ones(BLOCK_BYTES, dtype=torch.uint8)
    assert memory_bytes(CPU) - before >= 0.9 * held.numel()


def test_the_peak_is_never_below_what_is_in_use() -> None:
    assert peak_memory_bytes(CPU) >= 0.99 * memory_bytes(CPU)
