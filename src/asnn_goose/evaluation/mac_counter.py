"""What a student's linear layers are really given: `models.plan` says what should be spikes, this counts what is.

A layer multiplies each value that enters it with one weight a column. Where the values are spikes, an event-driven
product adds a column of weights |value| times instead, and does nothing for a 0.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from asnn_goose.models.student import GooseForCausalLM

HEAD = "lm_head"
PASS_TOKENS = 512
"""Tokens of one forward pass, at least one row: a whole probe's logits would take more memory than all else."""


@dataclass(frozen=True)
class LayerMacs:
    """What one linear layer was given.

    Attributes:
        name: Its path within the student.
        kind: `spikes`, `silent` or `dense`, as `count_macs` decides.
        inputs: Values that entered it.
        nonzero: Those that were not 0.
        events: Sum of |value| of spikes, the unit events they stand for; 0 where the values are no spikes.
        columns: Weights that each value is multiplied with.
    """

    name: str
    kind: Literal["spikes", "silent", "dense"]
    inputs: int
    nonzero: int
    events: int
    columns: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a dense product."""
        return self.inputs * self.columns

    @property
    def nonzero_macs(self) -> int:
        """Those whose value is not 0."""
        return self.nonzero * self.columns

    @property
    def additions(self) -> int:
        """Additions of an event-driven product; 0 where the values are no spikes."""
        return self.events * self.columns


@dataclass(frozen=True)
class MacCount:
    """What all linear layers of a student were given while it read some tokens; the head is one of them."""

    tokens: int
    layers: tuple[LayerMacs, ...]

    def spike_fed_share(self, with_head: bool = True) -> float:
        """Share of multiply-accumulates whose value is a spike, 0 to 1; a silent layer's are not."""
        counted = [layer for layer in self.layers if with_head or layer.name != HEAD]
        return sum(layer.macs for layer in counted if layer.kind == "spikes") / sum(layer.macs for layer in counted)

    @property
    def macs_per_token(self) -> float:
        """Multiply-accumulates of dense products."""
        return sum(layer.macs for layer in self.layers) / self.tokens

    @property
    def additions_per_token(self) -> float:
        """Additions that stand in place of the spike-fed ones."""
        return sum(layer.additions for layer in self.layers) / self.tokens

    @property
    def density(self) -> float | None:
        """Share of spike-fed multiply-accumulates whose spike is not 0; None where nothing is fed by spikes."""
        fed = [layer for layer in self.layers if layer.kind == "spikes"]
        return sum(layer.nonzero_macs for layer in fed) / sum(layer.macs for layer in fed) if fed else None

    @property
    def silent_layers(self) -> tuple[str, ...]:
        """Names of the layers that were given nothing but 0."""
        return tuple(layer.name for layer in self.layers if layer.kind == "silent")


@torch.no_grad()
def count_macs(student: GooseForCausalLM, ids: Int[Tensor, "batch time"]) -> MacCount:
    """What entered every linear layer while the student, in evaluation mode, read the given rows.

    A layer is given spikes if all its values, over all rows, are integers from -D to D, D being the student's own
    largest spike, and some are not 0. Given 0 alone it is silent: neither spikes nor dense, since nothing tells
    which. Dense values pass for spikes only where all of them are small integers by chance, so let the rows be text
    of many tokens. An amplitude for each channel makes values dense until it is folded: see `folded`.

    Raises:
        RuntimeError: A pass went past a layer without calling it, so that its values were not seen.
    """
    layers = {name: module for name, module in student.named_modules() if isinstance(module, nn.Linear)}
    levels = int(cast(dict[str, Any], student.config.spikes)["levels"])
    was_training = student.training
    student.eval()
    with _watched(layers) as seen:
        for rows in ids.split(max(PASS_TOKENS // ids.shape[1], 1)):
            student(input_ids=rows)
    student.train(was_training)
    missed = [name for name in layers if not seen[name]]
    if missed:
        raise RuntimeError(f"a forward pass did not call {', '.join(missed)}: count a pass that calls every layer")
    found = [_layer_macs(name, layer.out_features, torch.stack(seen[name]), levels) for name, layer in layers.items()]
    return MacCount(ids.numel(), tuple(found))


@contextmanager
def _watched(layers: Mapping[str, nn.Linear]) -> Iterator[dict[str, list[Tensor]]]:
    """Figures of what each layer is given, call by call; a watched layer is not joined with others."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = [layer.register_forward_pre_hook(partial(_keep_figures, seen[name])) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _keep_figures(kept: list[Tensor], layer: nn.Module, given: tuple[Tensor, ...]) -> None:
    """Number of values, whether all are integers, and of their magnitudes the largest, the sum and those above 0."""
    values = given[0].double()
    magnitudes, count = values.abs(), values.new_tensor(values.numel())
    whole = (values == values.round()).all().double()
    kept.append(torch.stack((count, whole, magnitudes.amax(), magnitudes.sum(), (values != 0).sum().double())))


def _layer_macs(name: str, columns: int, calls: Tensor, levels: int) -> LayerMacs:
    counts, whole, largest, sums, nonzero = calls.cpu().unbind(dim=1)
    kind: Literal["spikes", "silent", "dense"] = "dense"
    if whole.all() and largest.max() <= levels:
        kind = "spikes" if largest.max() > 0 else "silent"
    events = int(sums.sum()) if kind == "spikes" else 0
    return LayerMacs(name, kind, int(counts.sum()), int(nonzero.sum()), events, columns)
