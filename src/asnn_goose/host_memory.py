"""How a process on a CPU keeps the memory that it frees and asks for again at once.

glibc gives large blocks back to the system as soon as they are freed, and the system clears every page of them anew:
passes of a model that are looked into spent a quarter of their time on that.
"""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""
LARGEST_KEPT, MOST_KEPT = 2**25, 2**31 - 1
"""Bytes: the largest threshold that glibc takes for a block, and an int's for all that is free."""


def keep_large_blocks() -> bool:
    """Let freed blocks of up to 32 MiB stay with the process, 2 GiB in all, on large pages where the system has them.

    For a process of its own, before it imports torch, which reads once whether it may ask for large pages. A choice
    that the environment makes (THP_MEM_ALLOC_ENABLE) stands.

    Returns:
        Whether the C library has such a setting, as glibc has.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    taken = [set_option(MMAP_THRESHOLD, LARGEST_KEPT), set_option(TRIM_THRESHOLD, MOST_KEPT)]
    return all(taken)
