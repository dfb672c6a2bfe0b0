from dataclasses import fields
from typing import get_args

import pytest
import torch

from asnn_goose.evaluation.synthetic_spikes import (
    EXPECTED,
    KINDS,
    SITES,
    Kind,
    synthetic_observations,
)
from asnn_goose.information.cka import normalized_tokens

ROWS, TIME, WIDTH = 64, 64, 24
MUCH, LITTLE = 0.8, 0.1
"""Shares of the teacher's variance that a held-out regression explains: of what is known, and of what is not."""


def whole(kind, untrained=False, seed=0):
    """All rows as one observation."""
    made = synthetic_observations(kind, seed, ROWS, TIME, WIDTH, untrained=untrained, rows_per_batch=ROWS)
    return next(iter(made))


def explained(seen, state=0, site="k", late=0):
    """What least squares on the first half of the rows explains of the teacher's normalized state in the other half."""
    spikes = seen.sites[0, site].spikes[:, 1 + late :].double()
    taught = normalized_tokens(seen.teacher_hidden[state])[:, 1 : TIME - late]
    half = ROWS // 2
    weights = torch.linalg.lstsq(spikes[:half].flatten(0, 1), taught[:half].flatten(0, 1)).solution
    held_out = taught[half:].flatten(0, 1)
    errors = held_out - spikes[half:].flatten(0, 1) @ weights
    return 1 - float(errors.square().sum() / held_out.square().sum())


def tensors(seen):
    parts = {f"{place}.{f.name}": getattr(made, f.name) for place, made in seen.sites.items() for f in fields(made)}
    parts |= {f"state {block}": state for block, state in seen.states.items()}
    parts |= {f"output {block}": output for block, output in enumerate(seen.block_outputs)}
    return parts | {f"teacher {number}": state for number, state in enumerate(seen.teacher_hidden)}


def test_every_kind_says_what_it_has_to_pass():
    assert set(EXPECTED) == set(KINDS) == set(get_args(Kind))
    assert all(EXPECTED["perfect"].values())
    assert not any(EXPECTED["rate_matched_noise"].values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("untrained", [False, True])
def test_spikes_are_ternary_and_fire_at_about_four_tenths(kind, untrained):
    seen = whole(kind, untrained)
    for site in SITES:
        spikes = seen.sites[0, site].spikes
        assert spikes.dtype == torch.float32
        assert set(spikes.unique().tolist()) == {-1.0, 0.0, 1.0}
        assert float((spikes != 0).float().mean()) == pytest.approx(0.42, abs=0.03)


@pytest.mark.parametrize("site", SITES)
def test_perfect_spikes_determine_the_teacher_s_state(site):
    assert explained(whole("perfect"), site=site) > MUCH


def test_noise_of_the_same_rate_knows_nothing():
    assert explained(whole("rate_matched_noise")) < 0.0


def test_noise_has_the_activations_that_know():
    noise, perfect = (whole(kind).sites[0, "k"] for kind in ("rate_matched_noise", "perfect"))
    assert torch.equal(noise.preactivations, perfect.preactivations)
    assert not torch.equal(noise.spikes, perfect.spikes)


def test_late_spikes_know_the_token_before():
    seen = whole("one_token_late")
    assert explained(seen, late=1) > MUCH > explained(seen)


def test_a_random_projection_preserves_what_it_has_not_learned():
    assert explained(whole("random_projection")) > MUCH
    assert explained(whole("random_projection", untrained=True)) > MUCH


@pytest.mark.parametrize("kind", ["perfect", "rate_matched_noise", "one_token_late"])
def test_other_untrained_students_know_next_to_nothing(kind):
    assert explained(whole(kind, untrained=True)) < LITTLE


def test_the_first_token_is_massive_on_three_channels():
    for hidden in whole("perfect").teacher_hidden:
        first, others = hidden[:, 0], hidden[:, 1:]
        assert float(first.norm(dim=-1).mean()) == pytest.approx(3000, rel=0.05)
        assert float(others.square().sum(dim=-1).mean().sqrt()) == pytest.approx(80, rel=0.1)
        assert int((first.abs().mean(dim=0) > 1000).sum()) == 3


def test_teacher_and_text_are_the_same_for_all_students():
    states = [whole(kind, untrained).teacher_hidden for kind in KINDS for untrained in (False, True)]
    assert all(torch.equal(state, same) for found in states for state, same in zip(found, states[0], strict=True))


def test_the_teacher_s_tokens_remember_the_one_before():
    state = whole("perfect").teacher_hidden[0][:, 1:]
    left, right = state[:, :-1].flatten(), state[:, 1:].flatten()
    assert float(torch.corrcoef(torch.stack([left, right]))[0, 1]) == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_their_batch(kind):
    whole_rows, *_ = synthetic_observations(kind, 3, 5, 12, 8, rows_per_batch=5)
    parts = list(synthetic_observations(kind, 3, 5, 12, 8, rows_per_batch=2))
    assert [part.rows for part in parts] == [2, 2, 1]
    for name, tensor in tensors(whole_rows).items():
        assert torch.equal(tensor, torch.cat([tensors(part)[name] for part in parts])), name


def test_another_seed_is_another_teacher():
    assert not torch.equal(whole("perfect").teacher_hidden[0], whole("perfect", seed=1).teacher_hidden[0])


def test_fewer_channels_than_massive_ones_are_refused():
    with pytest.raises(ValueError, match="width must be at least 3, got 2"):
        next(synthetic_observations("perfect", width=2))
