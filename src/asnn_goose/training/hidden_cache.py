"""What the teacher's head reads of every row, kept: a row that comes back needs only the head again."""

import numpy as np
import psutil
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from asnn_goose.errors import ConfigError

MEMORY_SHARE = 0.5
"""Share of the free memory that the cache may take; student, optimizer and a step need the rest."""


class HiddenCache:
    """Hidden states of rows by their number, on the device that uses them, as the teacher gave them: nothing is lost.

    A batch is spared the teacher if all of its rows are known; a resumed run knows none.

    Args:
        rows: Rows that there are.
        window: Tokens of a row.
        width: Channels of a hidden state.
        dtype: Number type of the teacher's hidden states.
        device: Where they are kept.

    Raises:
        ConfigError: They would take more than `MEMORY_SHARE` of the free memory.
    """

    def __init__(self, rows: int, window: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        wanted, free = rows * window * width * dtype.itemsize, free_bytes(device)
        if wanted > MEMORY_SHARE * free:
            raise ConfigError(
                f"teacher.hidden_cache=true would keep {wanted / 1e9:,.1f} GB of {rows:,} rows, and {device.type} has "
                f"{free / 1e9:,.1f} GB free, of which it may take {MEMORY_SHARE:.0%}: set it to false, or take less "
                "text"
            )
        with torch.inference_mode():
            self._states = torch.empty(rows, window, width, dtype=dtype, device=device)
        self._known = np.zeros(rows, dtype=np.bool_)

    def holds(self, numbers: Int64[np.ndarray, " batch"]) -> bool:
        """Whether all of these rows are known; asks the host alone."""
        return bool(self._known[numbers].all())

    @torch.inference_mode()
    def keep(self, numbers: Int64[np.ndarray, " batch"], hidden: Float[Tensor, "batch time width"]) -> None:
        """Remember these rows."""
        self._states.index_copy_(0, self._places(numbers), hidden)
        self._known[numbers] = True

    @torch.inference_mode()
    def recall(
        self, numbers: Int64[np.ndarray, " batch"], out: Float[Tensor, "batch time width"] | None = None
    ) -> Float[Tensor, "batch time width"]:
        """These rows, all of which are known; written into `out` if it is given."""
        if out is None:
            return self._states.index_select(0, self._places(numbers))
        return torch.index_select(self._states, 0, self._places(numbers), out=out)

    def _places(self, numbers: Int64[np.ndarray, " batch"]) -> Tensor:
        places = torch.from_numpy(numbers)
        device = self._states.device
        return places.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else places


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, what torch holds ready included."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    return int(psutil.virtual_memory().available)
