"""How much memory a run uses, on a GPU or as a process."""

import resource
import sys

import psutil
import torch


def memory_bytes(device: torch.device) -> int:
    """Memory in use now: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has used: allocated on a CUDA device, else its largest resident size."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
