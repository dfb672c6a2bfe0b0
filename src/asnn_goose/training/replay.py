"""A micro-batch's work on a GPU, recorded once as CUDA graphs and then replayed: no launches, no Python in between.

Uncompiled or compiled, thirty blocks forward and backward are some thousand kernels, which Python launches more slowly
than an H200 runs them. A replay is one launch, and reads and writes the same addresses every time.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from asnn_goose.data.feed import Batch
from asnn_goose.training.work import StageWork

logger = logging.getLogger(__name__)

WARM_UPS = 3
"""Micro-batches that run as written before one is recorded: what compiles and allocates must have done so."""
ALIGNMENT = 32
"""Gradients begin at multiples of so many numbers, as allocations of their own would."""

Found = TypeVar("Found")
Means = dict[str, Tensor]


class Recording(Generic[Found]):
    """Work whose kernels were recorded, not run; to call it is to run them, the results at the same place each time."""

    def __init__(self, work: Callable[[], Found]) -> None:
        self.graph = torch.cuda.CUDAGraph()
        # Elsewhere a thread goes on pinning batches, which a stricter mode would forbid it.
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.found = work()

    def __call__(self) -> Found:
        """Run it."""
        self.graph.replay()
        return self.found


class FlatGradients:
    """The gradients of weights that have one, side by side in one tensor that stays where it is.

    Args:
        parameters: The weights; they keep what gradients they have.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.grad is not None]
        sizes = [-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in self.parameters]
        first = self.parameters[0]
        self.flat = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        for parameter, room in zip(self.parameters, self.flat.split(sizes), strict=True):
            place = room[: parameter.numel()].view_as(parameter)
            place.copy_(cast(Tensor, parameter.grad))
            parameter.grad = place

    def zero(self) -> None:
        """Forget all of them, leaving them where they are."""
        self.flat.zero_()


class _Recorded(NamedTuple):
    """Token ids, where both recordings look for them, what is seen of the teacher, and what is learned from it."""

    ids: Tensor
    seen: Recording[Any]
    learned: Recording[Means]


class ReplayedMicroBatch:
    """Forward and backward of micro-batches of one shape, recorded after a few and then replayed.

    If recording fails it says so once and goes on as written.

    Args:
        work: What the stage works with.
        learn: Forward and backward on token ids and what was seen of the teacher, which adds to the weights'
            gradients; gives means.
        parameters: The step's weights, all of one dtype.
        accumulates: Whether gradients are added to those before, as several micro-batches a step or several
            processes want it; if not, each micro-batch writes its own and nothing needs to be zeroed.
    """

    def __init__(
        self,
        work: StageWork,
        learn: Callable[[Tensor, Any], Means],
        parameters: list[nn.Parameter],
        accumulates: bool = True,
    ) -> None:
        self.work, self.learn, self.parameters, self.accumulates = work, learn, parameters, accumulates
        self.gradients: FlatGradients | None = None
        self._taken, self._failed = 0, False
        self._recorded: _Recorded | None = None

    def __call__(self, batch: Batch) -> Means:
        """The micro-batch's means; its gradients are with the weights."""
        self._taken += 1
        if self._taken > WARM_UPS and self._recorded is None and not self._failed:
            self._recorded = self._record(batch.ids)
        if self._recorded is None:
            means = self.learn(batch.ids, self.work.see(batch))
            self._settle_gradients()
            return means
        self._recorded.ids.copy_(batch.ids)
        self._see(batch, self._recorded.seen)
        # The next micro-batch of the same step overwrites what this one found.
        return {name: mean.clone() for name, mean in self._recorded.learned().items()}

    def _see(self, batch: Batch, seen: Recording[Any]) -> None:
        """Put what the step sees of the teacher where it was recorded to look."""
        cache = self.work.cache
        if cache is not None and cache.holds(batch.numbers):
            cache.recall(batch.numbers, out=seen.found.hidden)
            return
        found = seen()
        if cache is not None:
            cache.keep(batch.numbers, found.hidden)

    def forget(self) -> None:
        """Make ready for the next step's gradients."""
        if self.gradients is not None:
            self.gradients.zero()
        elif self._recorded is None:
            self._drop_gradients()

    def _drop_gradients(self) -> None:
        """Drop all gradients that have no place to keep."""
        kept = set() if self.gradients is None else set(self.gradients.parameters)
        for parameter in self.parameters:
            if parameter not in kept:
                parameter.grad = None

    def _settle_gradients(self) -> None:
        """Give the gradients their place, once it is known which weights have one."""
        if not self.accumulates:
            return
        known = set() if self.gradients is None else set(self.gradients.parameters)
        if any(parameter.grad is not None and parameter not in known for parameter in self.parameters):
            self.gradients = FlatGradients(self.parameters)

    def _record(self, ids: Tensor) -> "_Recorded | None":
        kept = ids.clone()
        try:
            seen = Recording(lambda: self.work.observe(kept))
            if not self.accumulates:
                # The recording then makes them, where its replays will write them.
                self._drop_gradients()
            learned = Recording(lambda: self.learn(kept, seen.found))
        except RuntimeError as error:
            self._failed = True
            # What a recording has made was never computed.
            self._drop_gradients()
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            logger.warning("training.cuda_graphs: a micro-batch could not be recorded (%s); it runs as written", reason)
            return None
        return _Recorded(kept, seen, learned)
