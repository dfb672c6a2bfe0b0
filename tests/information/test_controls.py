import pytest
import torch

from asnn_goose.information import controls
from asnn_goose.information.controls import (
    Control,
    flip_signs,
    forget_draws,
    rate_matched_noise,
    shift_in_time,
    shuffle_in_time,
    shuffle_signs,
)

CONTROLS = [shift_in_time, shuffle_in_time, rate_matched_noise, shuffle_signs, flip_signs]
DRAWN = CONTROLS[:-1]


def spikes(rows: int = 4, time: int = 40, width: int = 6) -> torch.Tensor:
    """Integers of -2 to 2, of which each channel has a rate and a sign of its own."""
    generator = torch.Generator().manual_seed(0)
    magnitudes = torch.randint(1, 3, (rows, time, width), generator=generator).float()
    fires = torch.rand(rows, time, width, generator=generator) < torch.linspace(0, 1, width)
    signs = torch.where(torch.rand(rows, time, width, generator=generator) < torch.linspace(1, 0.2, width), 1.0, -1.0)
    return magnitudes * fires * signs


def distinct(time: int = 12, width: int = 3) -> torch.Tensor:
    """One row whose values are all different, so that each can be followed."""
    return torch.arange(1, time * width + 1).reshape(1, time, width)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.bfloat16])
def test_shape_and_type_are_kept(control: Control, dtype: torch.dtype) -> None:
    found = control(spikes().to(dtype), 0, 0)
    assert found.shape == (4, 40, 6)
    assert found.dtype == dtype


@pytest.mark.parametrize("control", CONTROLS)
def test_the_rate_of_every_channel_of_every_row_is_kept(control: Control) -> None:
    given = spikes()
    assert torch.equal((control(given, 3, 0) != 0).sum(dim=1), (given != 0).sum(dim=1))


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("batch", [1, 3])
def test_batches_change_nothing(control: Control, batch: int) -> None:
    given = spikes()
    parts = [control(part, 3, 10 + batch * number) for number, part in enumerate(given.split(batch))]
    assert torch.equal(torch.cat(parts), control(given, 3, 10))


@pytest.mark.parametrize("control", DRAWN)
def test_rows_and_seeds_draw_differently(control: Control) -> None:
    row = spikes(rows=1, time=400)
    same = control(row.expand(8, -1, -1), 0, 0)
    assert len({tuple(each.flatten().tolist()) for each in same}) >= 7
    assert not torch.equal(control(row, 1, 0), control(row, 0, 0))


@pytest.mark.parametrize("control", [shift_in_time, shuffle_in_time, rate_matched_noise])
def test_values_of_every_channel_are_kept(control: Control) -> None:
    given = spikes()
    assert torch.equal(control(given, 0, 0).sort(dim=1).values, given.sort(dim=1).values)


@pytest.mark.parametrize("control", [shift_in_time, shuffle_in_time])
def test_tokens_stay_whole(control: Control) -> None:
    moved = control(distinct(), 0, 0)[0]
    assert sorted(moved.tolist()) == distinct()[0].tolist()
    assert not torch.equal(moved, distinct()[0])


def test_noise_orders_tokens_by_their_keys_and_equal_keys_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.randint(5, (3, 12), generator=torch.Generator().manual_seed(0))
    bits = keys.flatten().unsqueeze(0) << 64 - controls.KEY_BITS
    monkeypatch.setattr(controls, "random_bits", lambda *asked: bits)
    expected = [distinct()[0, order, channel] for channel, order in enumerate(keys.argsort(dim=1, stable=True))]
    # Orders are kept: no other test may ask for this seed.
    assert torch.equal(rate_matched_noise(distinct(), 987_654, 0)[0].T, torch.stack(expected))


def test_noise_takes_tokens_apart() -> None:
    tokens = {tuple(token) for token in distinct()[0].tolist()}
    assert not all(tuple(token) in tokens for token in rate_matched_noise(distinct(), 0, 0)[0].tolist())


@pytest.mark.parametrize("time", [2, 3, 5, 12])
def test_a_shift_turns_by_a_quarter_at_least(time: int) -> None:
    rows = torch.arange(time).reshape(1, time, 1).repeat(200, 1, 1)
    offsets = (-shift_in_time(rows, 0, 0)[:, 0, 0]) % time
    least = -(-time // 4)
    assert set(offsets.tolist()) == set(range(least, time - least + 1))
    assert torch.equal(shift_in_time(rows, 0, 0)[0, :, 0], rows[0, :, 0].roll(int(offsets[0])))


def test_a_shift_keeps_the_circular_autocorrelation() -> None:
    given = spikes().double()
    moved = shift_in_time(given, 0, 0)
    for lag in range(5):
        before, after = ((x * x.roll(lag, 1)).sum(dim=1) for x in (given, moved))
        assert torch.equal(before, after)


def test_shuffled_signs_keep_magnitudes_and_are_fair() -> None:
    given = torch.ones(20, 100, 10)
    found = shuffle_signs(given, 0, 0)
    assert torch.equal(found.abs(), given)
    # 20000 coins: the mean deviates by 0.007.
    assert abs(float(found.mean())) < 0.035


@pytest.mark.parametrize("control", DRAWN)
def test_rows_by_themselves_and_rows_together_are_the_same(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = control(spikes(), 3, 5)
    monkeypatch.setattr(controls, "ROW_BY_ROW", set())
    assert torch.equal(control(spikes(), 3, 5), alone)


def test_flipped_signs_are_the_negative() -> None:
    assert torch.equal(flip_signs(spikes(), 0, 0), -spikes())


@pytest.mark.parametrize("control", DRAWN)
def test_the_global_generator_is_left_alone(control: Control) -> None:
    before = torch.get_rng_state()
    control(spikes(), 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_row_that_cannot_be_shifted_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        shift_in_time(torch.ones(1, 1, 1), 0, 0)


def test_draws_are_kept_until_they_are_forgotten() -> None:
    for control in DRAWN:
        control(torch.ones(2, 8, 3), 0, 0)
    kept = (controls._shifts, controls._orders, controls._signs)
    assert all(draws.cache_info().currsize for draws in kept)
    forget_draws()
    assert not any(draws.cache_info().currsize for draws in kept)
