"""How every numba kernel of the package is compiled, called and given its arrays.

Raises MachineError at import where numba is missing, so that a caller can fall back.
"""

from collections.abc import Callable, Set
from functools import cache
from typing import Any, no_type_check
from warnings import catch_warnings, simplefilter

import torch
from numpy.typing import NDArray
from torch import Tensor

from asnn_goose.errors import MachineError

__all__ = ["as_array", "block_of", "blocks_of", "compile_kernel", "numba", "run_kernel"]

try:
    import numba
except ImportError as error:
    raise MachineError(
        f"the numba kernels need numba, which cannot be imported ({error}): pip install 'asnn-goose[cpu]', "
        "or choose the torch backend"
    ) from error

# Long enough to stream from memory, short enough to give a small batch of wide rows to several threads.
BLOCK_CHANNELS = 384
# Fusing multiply and add is the one liberty the compiler takes: it rounds once instead of twice.
LIBERTIES = frozenset({"contract"})


def compile_kernel(kernel: Callable[..., None], liberties: Set[str] = LIBERTIES) -> Callable[..., None]:
    """The kernel as machine code, kept on disk between processes where some folder can be written."""
    options = {"parallel": True, "nogil": True, "fastmath": set(liberties)}
    try:
        compiled: Callable[..., None] = numba.njit(cache=True, **options)(kernel)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        compiled = numba.njit(**options)(kernel)
    return compiled


# no_type_check keeps the shape checks of the test run from wrapping what numba has to compile.
@numba.njit
@no_type_check
def blocks_of(channels):
    """Blocks of channels that one row is cut into; a kernel's task is one of them in one row."""
    return (channels + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS


@numba.njit
@no_type_check
def block_of(task, channels):
    """The row of a task, and its first channel and the one behind its last."""
    blocks = blocks_of(channels)
    first = (task % blocks) * BLOCK_CHANNELS
    return task // blocks, first, min(first + BLOCK_CHANNELS, channels)


@cache
def _most_threads() -> int:
    """The number of threads numba has started; starting them may warn about a library it then does not use."""
    threads = torch.get_num_threads()
    with catch_warnings():
        simplefilter("ignore")
        numba.get_num_threads()
    # Numba sets the thread count of the OpenMP library that torch shares with it.
    torch.set_num_threads(threads)
    return int(numba.config.NUMBA_NUM_THREADS)


def run_kernel(kernel: Callable[..., None], *arguments: Any) -> None:
    """Run a kernel on as many threads as torch uses, and leave numba's own setting as it was."""
    threads = min(torch.get_num_threads(), _most_threads())
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        kernel(*arguments)
    finally:
        numba.set_num_threads(before)


def as_array(tensor: Tensor) -> NDArray[Any]:
    """The tensor's memory as a C-ordered array: one compiled version serves every stride."""
    array: NDArray[Any] = tensor.detach().contiguous().numpy()
    return array
