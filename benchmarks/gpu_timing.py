"""Times of work on a GPU, for the benchmarks beside this."""

import statistics
from collections.abc import Callable

import torch

# At 4 TB/s, half a millisecond: more than Python needs for a forward and backward of two dozen kernels.
FLUSHED_BYTES = 2**31


def gpu_us(work: Callable[[], object], repeats: int) -> float:
    """Median time of the GPU alone, in microseconds, with nothing in its cache."""
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.zero_()
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times[3:])
