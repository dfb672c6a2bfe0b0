"""Samples thousands of continuations at once from a Llama-family model, as fast as the device reads its cache.

A step of `transformers.generate` launches each operation from Python, and a batch lasts until its last row has ended.
Here a step on a GPU is one captured graph, attention reads the cache in steps of `BUCKET` positions, and rows that have
ended leave the batch at such a step. Random numbers are drawn outside the graph.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from asnn_goose.errors import ModelError
from asnn_goose.inference.cached_llama import CachedLlama

BUCKET = 64
"""Positions by which the part of the cache that attention reads grows."""
ROW_STEPS = 8
"""The batch shrinks in steps of this part of it, so that few sizes need a graph of their own."""


@dataclass(frozen=True)
class Nucleus:
    """Which tokens can be drawn, and how likely each is.

    The nucleus is cut out of the `candidates` likeliest tokens, whose probabilities are taken to sum to one, as
    transformers does with `top_k` and `top_p` together: sorting the whole vocabulary would cost more than the model.

    Attributes:
        temperature: Divides the logits; above 0.
        top_p: The nucleus is the smallest set of likeliest tokens with at least this probability; in (0, 1].
        candidates: Tokens that the nucleus is cut out of.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    candidates: int = 512

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.candidates < 1:
            raise ModelError(
                f"temperature must be above 0, top_p in (0, 1] and candidates at least 1, got {self.temperature}, "
                f"{self.top_p} and {self.candidates}; for the likeliest token alone give candidates=1"
            )


class ContinuationSampler:
    """Continues batches of prompts; the cache and the captured graphs stay between calls."""

    def __init__(self, model: PreTrainedModel, rows: int, positions: int, nucleus: Nucleus, eos_token_id: int) -> None:
        """Allocate for batches of at most `rows` prompts, with their continuations at most `positions` long.

        Raises:
            ModelError: As `CachedLlama`.
        """
        self.llama = CachedLlama(model, rows, positions)
        self.nucleus, self.eos_token_id = nucleus, eos_token_id
        device = self.llama.device
        candidates = min(nucleus.candidates, self.llama.head.shape[0])
        self._noise = torch.ones(rows, candidates, device=device)
        self._sequences = torch.zeros(rows, positions, dtype=torch.long, device=device)
        self._first = torch.zeros(rows, dtype=torch.long, device=device)
        self._ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @torch.no_grad()
    def sample(
        self,
        prompt_ids: Int[Tensor, "rows prompt"],
        attention_mask: Int[Tensor, "rows prompt"] | Bool[Tensor, "rows prompt"],
        new_tokens: int,
        generator: torch.Generator,
    ) -> Int[Tensor, "rows new_tokens"]:
        """Continuations of the prompts, filled with the end-of-text token behind their end.

        Args:
            prompt_ids: Token ids, padded on the left.
            attention_mask: 0 where the padding is.
            new_tokens: Length of the longest continuation, its end-of-text token counted.
            generator: Source of the randomness, on the model's device.

        Raises:
            ModelError: The batch or its texts are larger than what was allocated, or not padded on the left.
        """
        rows, width = prompt_ids.shape
        self._check_batch(attention_mask, new_tokens)
        self._first[:rows] = (attention_mask == 0).sum(dim=1)
        self._sequences[:rows, :width] = prompt_ids
        self._ended[:rows] = False
        self._place.fill_(width - 1)
        order, finished = torch.arange(rows, device=self.llama.device), torch.empty_like(self._sequences[:rows])
        quantum = max(1, rows // ROW_STEPS)
        prompt_places = self.llama.times[:width]
        logits = self.llama.next_logits(self._sequences[:rows, :width], prompt_places, self._first[:rows], width)
        self._refill_noise(rows, generator)
        self._append(logits)
        place, last = width, width + new_tokens - 1
        while place < last and rows > 0:
            length = _round_up(place + 1, BUCKET, self._sequences.shape[1])
            stop = min(length, last)
            for _ in range(stop - place):
                self._refill_noise(rows, generator)
                self._run_step(rows, length)
            place = stop
            finished[order] = self._sequences[:rows]
            finished[order, place + 1 :] = self.eos_token_id
            order = self._drop_ended(order, quantum, length)
            rows = len(order)
        finished[order] = self._sequences[:rows]
        return finished[:, width : width + new_tokens].clone()

    def _check_batch(self, attention_mask: Tensor, new_tokens: int) -> None:
        rows, width = attention_mask.shape
        most_rows, positions = self._sequences.shape
        if rows > most_rows or new_tokens < 1 or width + new_tokens > positions:
            raise ModelError(
                f"{rows} prompts of {width} tokens and {new_tokens} new ones do not fit a sampler for {most_rows} rows "
                f"of {positions} positions; make it larger, or shorten the batch"
            )
        if not bool((attention_mask.long().diff(dim=1) >= 0).all() & (attention_mask[:, -1] != 0).all()):
            raise ModelError("prompts must be padded on the left: attention_mask must go from 0 to 1 and end with 1")

    def _refill_noise(self, rows: int, generator: torch.Generator) -> None:
        self._noise[:rows].exponential_(generator=generator)

    def _run_step(self, rows: int, length: int) -> None:
        if self._pool is None:
            self._step(rows, length)
        elif (rows, length) in self._graphs:
            self._graphs[rows, length].replay()
        else:
            # Run once without a graph: this does the step, and loads what may not be loaded during a capture.
            self._step(rows, length)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                self._step(rows, length)
            self._graphs[rows, length] = graph

    def _step(self, rows: int, length: int) -> None:
        tokens = self._sequences[:rows].index_select(1, self._place)
        self._append(self.llama.next_logits(tokens, self._place, self._first[:rows], length))

    def _append(self, logits: Tensor) -> None:
        rows = len(logits)
        drawn = draw_tokens(logits, self._noise[:rows], self.nucleus.temperature, self.nucleus.top_p)
        drawn = drawn.masked_fill(self._ended[:rows], self.eos_token_id)
        self._ended[:rows].logical_or_(drawn == self.eos_token_id)
        self._place.add_(1)
        self._sequences[:rows].index_copy_(1, self._place, drawn[:, None])

    def _drop_ended(self, order: Tensor, quantum: int, length: int) -> Tensor:
        """The original places of the rows that stay: all that go on, and ended ones up to the next step of size."""
        rows = len(order)
        # The only time that the host waits for the device, once in BUCKET steps.
        going_on = rows - int(self._ended[:rows].sum())
        kept = _round_up(going_on, quantum, rows)
        if kept == rows:
            return order
        chosen = torch.argsort(self._ended[:rows].to(torch.uint8), stable=True)[:kept]
        for state in (self._sequences, self._first, self._ended):
            state[:kept] = state[chosen]
        self.llama.take_rows(chosen, length)
        return order[chosen]


def draw_tokens(
    logits: Float[Tensor, "rows vocabulary"],
    noise: Float[Tensor, "rows candidates"],
    temperature: float,
    top_p: float,
) -> Int[Tensor, " rows"]:
    """A token for each row, drawn from its nucleus; see `Nucleus`.

    Args:
        logits: Unnormalized log-probabilities.
        noise: Independent draws from the exponential distribution with mean 1.
        temperature: Divides the logits.
        top_p: Least probability of the nucleus.
    """
    values, tokens = logits.topk(noise.shape[1], dim=-1)
    shares = (values.float() / temperature).softmax(dim=-1)
    shares_before = shares.cumsum(dim=-1) - shares
    nucleus = shares.masked_fill(shares_before >= top_p, 0.0)
    # Of independent exponential times with rates p, the one with rate p_i comes first with probability p_i / sum(p).
    winner = (nucleus / noise).argmax(dim=-1, keepdim=True)
    return tokens.gather(-1, winner).squeeze(-1)


def sample_continuations(
    model: PreTrainedModel,
    prompt_ids: Int[Tensor, "rows prompt"],
    attention_mask: Int[Tensor, "rows prompt"] | Bool[Tensor, "rows prompt"],
    new_tokens: int,
    nucleus: Nucleus,
    eos_token_id: int,
    generator: torch.Generator,
) -> Int[Tensor, "rows new_tokens"]:
    """Continuations of one batch of prompts; for several batches, `ContinuationSampler` keeps its graphs.

    Raises:
        ModelError: As `ContinuationSampler` and its `sample`.
    """
    rows, width = prompt_ids.shape
    sampler = ContinuationSampler(model, rows, width + new_tokens, nucleus, eos_token_id)
    return sampler.sample(prompt_ids, attention_mask, new_tokens, generator)


def _round_up(count: int, step: int, most: int) -> int:
    return min(most, -(-count // step) * step)
