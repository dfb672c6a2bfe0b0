"""What the student remembers between calls: one state, one token-shift tail and a position counter a layer.

Encoders that remember, by a membrane or a threshold of running means, add one number a channel each, or one more.

Unlike a key-value cache it does not grow with the context. It speaks transformers' cache interface, so that
`generate`, beam search and continuation from a returned cache work as with any model.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class RecurrentLayer(CacheLayerMixin):
    """The memory of one layer.

    Attributes:
        state: Recurrent state, [batch, ...] as the mixer has it, float32 or float64; None before the first token.
        shift: What the mixer needs of the last valid tokens themselves, [batch, ...].
        membranes: What encoders remember, [batch, width] or one more, by site; the head's is with the last layer's.
        tokens_seen: Valid tokens each row has consumed, [batch]; padding is not counted.
        columns: Columns consumed, padding included: what `get_seq_length` returns.
    """

    is_compileable = False
    is_croppable = False
    supports_early_init = False
    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.state: Float[Tensor, "batch ..."] | None = None
        self.shift: Float[Tensor, "batch ..."] | None = None
        self.membranes: dict[str, Float[Tensor, "batch memory"]] = {}
        self.tokens_seen: Int[Tensor, " batch"] | None = None
        self.columns = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Adopt a first state and shift tail; in this cache they take the place of keys and values."""
        self.state, self.shift = key_states, value_states
        self.tokens_seen = torch.zeros(key_states.shape[0], dtype=torch.int64, device=key_states.device)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Replace state and shift tail, and return them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.state, self.shift = key_states, value_states
        return key_states, value_states

    def remember(self, membranes: Mapping[str, Float[Tensor, "batch memory"]]) -> None:
        """Replace the membranes of the given sites."""
        self.membranes = {**self.membranes, **membranes}

    def advance(self, columns: int, tokens: Int[Tensor, " batch"]) -> None:
        """Count columns consumed and, for each row, the valid tokens among them."""
        self.columns += columns
        self.tokens_seen = tokens if self.tokens_seen is None else self.tokens_seen + tokens

    @property
    def batch_size(self) -> int:
        """Rows held, or -1 before the first token."""
        return -1 if self.state is None else self.state.shape[0]

    def get_seq_length(self) -> int:
        """Columns consumed so far."""
        return self.columns

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask that covers past and query."""
        return self.columns + query_length, 0

    def offload(self) -> None:
        """Move the memory to the CPU."""
        self._map(lambda tensor: tensor.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Nothing to do: `update` replaces the whole memory on the model's device."""

    def reset(self) -> None:
        """Forget everything."""
        self.state = self.shift = self.tokens_seen = None
        self.membranes, self.columns = {}, 0
        self.is_initialized = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows of the chosen beams."""
        self._map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse to take tokens back: a recurrent state cannot be rewound."""
        if tokens_to_remove != 0:
            raise ValueError(
                f"a recurrent state cannot forget its last {tokens_to_remove} tokens; keep a copy of the cache instead"
            )

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.state is not None and self.shift is not None and self.tokens_seen is not None:
            self.state, self.shift = function(self.state), function(self.shift)
            self.tokens_seen = function(self.tokens_seen)
            self.membranes = {site: function(membrane) for site, membrane in self.membranes.items()}


class RecurrentCache(Cache):
    """The student's `past_key_values`: a `RecurrentLayer` for each block, constant in size.

    Args:
        layers: Number of blocks.
    """

    layers: list[RecurrentLayer]

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[RecurrentLayer() for _ in range(layers)])

    def to_tensors(self) -> dict[str, Tensor]:
        """The memory as named tensors, ready for safetensors; empty before the first token."""
        tensors: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            if layer.state is not None and layer.shift is not None and layer.tokens_seen is not None:
                tensors[f"{index}.state"] = layer.state.contiguous()
                tensors[f"{index}.shift"] = layer.shift.contiguous()
                tensors[f"{index}.tokens_seen"] = layer.tokens_seen.contiguous()
                tensors[f"{index}.columns"] = torch.tensor(layer.columns)
                tensors |= {f"{index}.membrane.{site}": part.contiguous() for site, part in layer.membranes.items()}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], layers: int) -> "RecurrentCache":
        """The cache that `to_tensors` described, for a model of `layers` blocks."""
        cache = cls(layers)
        for index, layer in enumerate(cache.layers):
            if f"{index}.state" in tensors:
                layer.update(tensors[f"{index}.state"], tensors[f"{index}.shift"])
                layer.tokens_seen = tensors[f"{index}.tokens_seen"]
                layer.columns = int(tensors[f"{index}.columns"])
                prefix = f"{index}.membrane."
                layer.remember({key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)})
        return cache
