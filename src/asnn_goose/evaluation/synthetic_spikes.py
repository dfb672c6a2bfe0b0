"""A teacher and students made of random numbers, of which it is known what spikes tell: what a validator is tried on.

The teacher's states have a power-law spectrum in a random basis and remember the token before, and the first token of a
row has massive activations on three channels, as GPT-2's has: its norm is 3,000 beside 80. A student's sites are made
of state 0, which its block is given, its state and output of state 2; a tenth of each is noise of the student's own. A
site has four channels for each of the teacher's: what one ternary spike leaves out, only others can tell.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from asnn_goose.evaluation.observation import Observation, SiteObservation
from asnn_goose.information.cka import normalized_tokens
from asnn_goose.information.randomness import generator_for
from asnn_goose.spikes.surrogate import staircase
from asnn_goose.validation_verdicts import CriterionName

Kind = Literal["perfect", "rate_matched_noise", "one_token_late", "random_projection"]
"""`perfect`: ternary spikes of the teacher's normalized state, turned. `rate_matched_noise`: the same activations, but
spikes drawn without looking at them. `one_token_late`: the perfect ones, each a token later. `random_projection`:
spikes of random mixtures of the teacher's channels; its untrained student has others, so it preserves without having
learned."""
KINDS: tuple[Kind, ...] = ("perfect", "rate_matched_noise", "one_token_late", "random_projection")
EXPECTED: Mapping[Kind, Mapping[CriterionName, bool]] = {
    "perfect": {"informative": True, "learned": True, "kept": True, "aligned": True},
    "rate_matched_noise": {"informative": False, "learned": False, "kept": False, "aligned": False},
    "one_token_late": {"informative": True, "kept": True, "aligned": False},
    "random_projection": {"informative": True, "learned": False, "kept": True, "aligned": True},
}
"""What each kind has to pass and to fail. What a kind leaves open is not in its row, and nothing predicts here, so that
`used` is in none."""
LAYER_MAP: Mapping[int, int] = {0: 2}
"""The teacher's state that the block's output stands for."""
SITES = ("k", "v", "mixer_in")
EXPANSION = 4
"""Channels of a site for each of the teacher's. With one, and no noise, spikes keep but 65 % of what a probe finds."""
TEACHER_STATES = 3
NORM, FIRST_NORM, MASSIVE_CHANNELS = 80.0, 3000.0, 3
SPECTRUM_EXPONENT = 1.0
"""The variance of the i-th principal component is proportional to i to the power of minus this."""
MEMORY = 0.6
"""Correlation of a component with itself one token before."""
DEPTH_MEMORY = 0.6
"""Correlation of a state's components with those of the state before."""
GAUSSIAN_RATE = 0.425
"""Share of normally distributed numbers whose magnitude is above their mean magnitude."""
TRAINED_SHARE, UNTRAINED_SHARE = 0.95, 0.15
"""Correlation of a student's activations with what they are made of; the rest is noise."""


@dataclass(frozen=True, eq=False)
class _World:
    """What all rows share: one basis a state of the teacher, and how a student's insides are turned."""

    bases: tuple[Float[Tensor, "width width"], ...]
    spread: Float[Tensor, " width"]
    turns: Mapping[str, Float[Tensor, "width wide"]]


def synthetic_observations(
    kind: Kind,
    seed: int = 0,
    rows: int = 64,
    time: int = 128,
    width: int = 64,
    *,
    untrained: bool = False,
    rows_per_batch: int = 8,
) -> Iterator[Observation]:
    """Whole rows of a teacher and a student of one block, on the CPU, the same for the same seed whatever the batches.

    Args:
        kind: What the student's spikes are.
        seed: Of everything; the teacher and its rows depend on it and on neither kind nor `untrained`.
        rows: How many in all.
        time: Tokens of a row.
        width: Channels of the teacher, at least as many as have massive activations.
        untrained: Whether the student is the kind's untrained one, whose spikes tell next to nothing; that of
            `random_projection` has other random projections.
        rows_per_batch: Rows of an observation; the last one may have fewer.

    Raises:
        ValueError: Fewer channels than have massive activations.
    """
    if width < MASSIVE_CHANNELS:
        raise ValueError(f"width must be at least {MASSIVE_CHANNELS}, got {width}")
    world = _world(kind, seed, width, untrained)
    for start in range(0, rows, rows_per_batch):
        numbers = range(start, min(start + rows_per_batch, rows))
        parts = [_row(world, kind, seed, number, time, untrained) for number in numbers]
        yield _stacked(parts)


def _world(kind: Kind, seed: int, width: int, untrained: bool) -> _World:
    order = torch.arange(1, width + 1)
    power = order.float() ** -SPECTRUM_EXPONENT
    other = int(kind == "random_projection" and untrained)
    names = (*SITES, "state", "block_output")
    mixtures = {
        name: _normal(EXPANSION * width, width, numbers=(seed, 1, other, index)) for index, name in enumerate(names)
    }
    return _World(
        bases=tuple(_rotation(_normal(width, width, numbers=(seed, 0, state))) for state in range(TEACHER_STATES)),
        spread=(power / power.sum()).sqrt() * NORM,
        turns={
            name: (mixture / width**0.5 if kind == "random_projection" else _rotation(mixture) * EXPANSION**0.5).T
            for name, mixture in mixtures.items()
        },
    )


def _row(world: _World, kind: Kind, seed: int, row: int, time: int, untrained: bool) -> Observation:
    hidden = _teacher_states(world, seed, row, time)
    drawn = generator_for(seed, 3, row, int(untrained))
    weak = untrained and kind != "random_projection"

    def inside(name: str, state: int) -> Tensor:
        """What the student makes of one of the teacher's states."""
        x = normalized_tokens(hidden[state]).float() @ world.turns[name]
        x = _mixed(x, torch.randn(x.shape, generator=drawn), UNTRAINED_SHARE if weak else TRAINED_SHARE)
        return functional.pad(x, (0, 0, 1, -1)) if kind == "one_token_late" and not untrained else x

    def encoded(x: Tensor) -> SiteObservation:
        """The ternary spikes of activations, or noise that fires as often."""
        z = x / (2 * x.abs().mean(dim=-1, keepdim=True)).clamp_min(torch.finfo(x.dtype).tiny)
        chance, sign = torch.rand(2, *z.shape, generator=drawn)
        noise = (chance < GAUSSIAN_RATE) * (sign - 0.5).sign()
        is_noise = kind == "rate_matched_noise" and not untrained
        return SiteObservation((noise if is_noise else staircase(z, levels=1))[None], z[None])

    made = LAYER_MAP[0]
    sites = {(0, site): encoded(inside(site, 0)) for site in SITES}
    state, output = (inside(name, made) for name in ("state", "block_output"))
    if kind == "rate_matched_noise" and not untrained:
        state, output = (torch.randn(part.shape, generator=drawn) for part in (state, output))
    return Observation(sites, {0: state[None]}, (output[None],), tuple(part[None] for part in hidden))


def _teacher_states(world: _World, seed: int, row: int, time: int) -> list[Float[Tensor, "time width"]]:
    """A row of each of the teacher's states: h_t = sum over i of spread_i a_t,i basis_i, each a_i of variance 1."""
    width, components = len(world.spread), None
    states = []
    for depth, basis in enumerate(world.bases):
        fresh = _remembering(_normal(time, width, numbers=(seed, 2, row, depth)))
        components = fresh if components is None else _mixed(components, fresh, DEPTH_MEMORY)
        hidden = (components * world.spread) @ basis
        hidden[0, :MASSIVE_CHANNELS] += FIRST_NORM / MASSIVE_CHANNELS**0.5
        states.append(hidden)
    return states


def _remembering(noise: Float[Tensor, "time width"]) -> Float[Tensor, "time width"]:
    """The stationary process a_t = MEMORY a_{t-1} + sqrt(1 - MEMORY^2) noise_t of variance 1, as one product."""
    moment = torch.arange(len(noise))
    weights = MEMORY ** (moment[:, None] - moment).clamp_min(0).float() * (1 - MEMORY**2) ** 0.5
    weights[:, 0] = MEMORY ** moment.float()
    remembering: Tensor = weights.tril() @ noise
    return remembering


def _mixed(old: Tensor, fresh: Tensor, share: float) -> Tensor:
    """Of the old one so much that it correlates by `share` with the result, whose variance stays."""
    mixed: Tensor = share * old + (1 - share**2) ** 0.5 * fresh
    return mixed


def _normal(*shape: int, numbers: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=generator_for(*numbers))


def _rotation(mixture: Float[Tensor, "tall width"]) -> Float[Tensor, "tall width"]:
    """Orthonormal columns."""
    rotation: Tensor = torch.linalg.qr(mixture).Q
    return rotation


def _stacked(parts: list[Observation]) -> Observation:
    """Rows as one batch."""
    first = parts[0]
    return Observation(
        sites={
            place: SiteObservation(
                torch.cat([part.sites[place].spikes for part in parts]),
                torch.cat([part.sites[place].preactivations for part in parts]),
            )
            for place in first.sites
        },
        states={block: torch.cat([part.states[block] for part in parts]) for block in first.states},
        block_outputs=tuple(map(torch.cat, zip(*(part.block_outputs for part in parts), strict=True))),
        teacher_hidden=tuple(map(torch.cat, zip(*(part.teacher_hidden for part in parts), strict=True))),
    )
