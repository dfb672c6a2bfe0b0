"""Whether a student's predictions need its spikes: its perplexity once something else stands in their place.

What spikes tell an observer a student need not use; what it does not use is not worth a kernel.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from threading import Lock
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from asnn_goose.config_validation import ValidationOptions
from asnn_goose.data.tokens import TokenRows
from asnn_goose.evaluation.observation import Place
from asnn_goose.evaluation.observe import at_rest, default_batch_rows, encoders_by_place, passes
from asnn_goose.evaluation.perplexity import EvaluationWindows, PerplexityResult, perplexity_of
from asnn_goose.evaluation.student import student_perplexity
from asnn_goose.information.controls import Control, flip_signs, rate_matched_noise, shuffle_in_time
from asnn_goose.information.randomness import generator_for
from asnn_goose.measurements import finite_or_none
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.spikes.encoder import SpikeEncoder, Spikes

PREACTIVATIONS = "preactivations"
"""The one replacement that destroys nothing: the real numbers pass as they are."""
ALL_SITES = "all"
"""In place of a site: every one at once."""


def silence(spikes: Tensor, seed: int, first_row: int) -> Tensor:
    """No spikes at all; nothing is drawn."""
    del seed, first_row
    return torch.zeros_like(spikes)


CONTROLS: Mapping[str, Control] = {
    "time_shuffled": shuffle_in_time,
    "signs_flipped": flip_signs,
    "rate_matched_noise": rate_matched_noise,
    "zeroed": silence,
}
"""What makes other integers of a site's spikes, by name; a token keeps its step."""
REPLACEMENTS = (*CONTROLS, PREACTIVATIONS)


@dataclass(frozen=True)
class ReplacedSpikes:
    """What the student predicts with something else in place of one site's spikes.

    Attributes:
        site: Encoded tensor, or `all`.
        replacement: One of `REPLACEMENTS`.
        loss_nats: Mean negative log-likelihood, whatever it is.
        perplexity: exp of it, never capped; None where that is not finite.
        ratio: exp of what the loss lies above that of the untouched student; None where that is not finite.
    """

    site: str
    replacement: str
    loss_nats: float
    perplexity: float | None
    ratio: float | None


@dataclass(frozen=True)
class SpikeUse:
    """What the student's predictions lose with its spikes.

    Attributes:
        tokens: Tokens of text it was measured on.
        loss_nats: Mean negative log-likelihood of the untouched student.
        perplexity: exp of it, never capped; None where that is not finite.
        replaced: By site and replacement; nothing where nothing is encoded.
    """

    tokens: int
    loss_nats: float
    perplexity: float | None
    replaced: tuple[ReplacedSpikes, ...]


def causal_use(
    student: GooseForCausalLM,
    rows: Int[Tensor, "rows time"],
    options: ValidationOptions,
    sites: Sequence[str] | None = None,
    block: int | None = None,
    on_done: Callable[[int, int], None] = lambda done, of: None,
) -> SpikeUse:
    """Perplexities of the student as it is and with each site's spikes replaced, each in each way.

    On the leading rows that hold `options.causal_tokens` tokens, at least one row; the first token of each is not
    scored, and sums are float64. `sites` are all that are encoded, one by one, unless given; `block` keeps to one
    block, where otherwise a site is replaced in all of them. Draws follow from `options.seed` and a row's number.
    `on_done` is told how many students have read the text, and of how many, one call at a time, from any thread.

    Raises:
        ValueError: A site or block at which nothing is encoded.
    """
    window = rows.shape[1]
    kept = rows[: max(1, options.causal_tokens // window)]
    windows = EvaluationWindows(TokenRows(kept.flatten().cpu().numpy(), window, window), "standard", "")
    replaced = [(site, name) for site in (_sites(student, block) if sites is None else sites) for name in REPLACEMENTS]
    rows_per_batch = options.rows_per_batch or default_batch_rows(student, window)
    students, numbers, one_at_a_time = _Students(student), count(1), Lock()
    on_done(0, 1 + len(replaced))

    def measure(replacement: tuple[str, str] | None) -> PerplexityResult:
        """Of a student of its own, with a site's spikes replaced or as it is."""
        with students.one() as own, ExitStack() as stack:
            if replacement is not None:
                stack.enter_context(replaced_spikes(own, *replacement, options.seed, block=block))
            found = student_perplexity(own, windows, rows_per_batch)
        with one_at_a_time:
            on_done(next(numbers), 1 + len(replaced))
        return found

    with at_rest(student):
        tasks = [partial(measure, replacement) for replacement in (None, *replaced)]
        untouched, *measured = passes(tasks, student.device)
    found = [_compared(*names, result, untouched) for names, result in zip(replaced, measured, strict=True)]
    return SpikeUse(kept.numel(), untouched.loss_nats, finite_or_none(untouched.perplexity), tuple(found))


class _Students:
    """Copies of a student that have its weights themselves, so that each may have other hooks at the same time."""

    def __init__(self, student: GooseForCausalLM) -> None:
        self._student, self._free = student, list[GooseForCausalLM]()

    @contextmanager
    def one(self) -> Iterator[GooseForCausalLM]:
        """A student that nobody else has within the block."""
        try:
            own = self._free.pop()
        except IndexError:
            shared = (*self._student.parameters(), *self._student.buffers())
            own = copy.deepcopy(self._student, {id(tensor): tensor for tensor in shared})
        yield own
        self._free.append(own)


@contextmanager
def replaced_spikes(
    student: GooseForCausalLM, site: str, replacement: str, seed: int, first_row: int = 0, block: int | None = None
) -> Iterator[None]:
    """Within the block a site's encoders return other spikes than they made, in all blocks or in one.

    What passes is whole rows, numbered from `first_row` on in the order in which they come, so that batches change
    nothing. Blocks and sites draw independently. Other integers go with the amplitude that belongs to them; what
    an encoder remembers is still what it fired itself. No block may be compiled.

    Raises:
        ValueError: An unknown replacement, or nothing is encoded there.
    """
    if replacement not in REPLACEMENTS:
        raise ValueError(f"replacement must be one of {', '.join(REPLACEMENTS)}, got {replacement!r}")
    places = [
        place for place in encoders_by_place(student) if site in (place[1], ALL_SITES) and block in (None, place[0])
    ]
    if not places:
        known = ", ".join(_sites(student, None)) or "nothing"
        raise ValueError(f"nothing is encoded at {site!r} of block {block}; this student encodes {known}")
    with ExitStack() as hooks:
        for place in places:
            hook = _Replacement(CONTROLS.get(replacement), _own_seed(seed, place), first_row)
            hooks.callback(encoders_by_place(student)[place].register_forward_hook(hook).remove)
        yield


class _Replacement:
    """A hook that counts the rows it has met."""

    def __init__(self, control: Control | None, seed: int, first_row: int) -> None:
        self.control, self.seed, self.row = control, seed, first_row

    def __call__(self, encoder: Any, given: tuple[Any, ...], encoded: Spikes) -> Spikes:
        """What stands in place of the spikes: the activations themselves where there is no control."""
        if self.control is None:
            return encoded._replace(values=given[0], token_scale=None, amplitude=None)
        values = self.control(encoded.values, self.seed, self.row)
        self.row += len(values)
        return encoded._replace(values=values, amplitude=_amplitude(encoder, values, encoded))


def _amplitude(encoder: SpikeEncoder, values: Tensor, encoded: Spikes) -> Tensor | None:
    """The factor on other values: another one where it goes by their sign."""
    amplitude = encoder.bounded_amplitude()
    if amplitude is None or encoder.amplitude_kind != "asymmetric":
        return encoded.amplitude
    return torch.where(values > 0, amplitude[0], amplitude[1])


def _own_seed(seed: int, place: Place) -> int:
    """A seed of the place's own: k and v shuffled alike would stay each other's partners."""
    block, site = place
    return generator_for(seed, block, *site.encode()).initial_seed()


def _sites(student: GooseForCausalLM, block: int | None) -> list[str]:
    """What is encoded in the student, or in one block of it, as its blocks list them."""
    return list(dict.fromkeys(site for number, site in encoders_by_place(student) if block in (None, number)))


def _compared(site: str, replacement: str, measured: PerplexityResult, untouched: PerplexityResult) -> ReplacedSpikes:
    ratio = perplexity_of(measured.loss_nats - untouched.loss_nats)
    return ReplacedSpikes(
        site, replacement, measured.loss_nats, finite_or_none(measured.perplexity), finite_or_none(ratio)
    )
