import numpy as np
import pytest
import torch

from asnn_goose.information import randomness
from asnn_goose.information.randomness import generator_for, random_bits, shifted_right


def draws(*numbers: int) -> list[int]:
    return torch.randint(2**60, (4,), generator=generator_for(*numbers)).tolist()


def test_equal_numbers_draw_equally() -> None:
    assert draws(3, 7) == draws(3, 7)


def test_every_number_and_their_order_matter() -> None:
    seen = [draws(seed, row) for seed in range(5) for row in range(5)]
    assert len({tuple(numbers) for numbers in seen}) == 25


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    draws(0, 1)
    random_bits(0, range(2), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_bits_are_those_of_splitmix64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomness, "_digest", lambda seed, row: seed + row)
    # Numbers from state 1234567, as its authors' C program writes them.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert random_bits(1234567, [0], 5)[0].numpy().view(np.uint64).tolist() == expected


def test_a_row_has_the_same_bits_in_any_batch_and_other_rows_and_seeds_have_others() -> None:
    together = random_bits(3, range(4, 8), 10)
    for place, row in enumerate(range(4, 8)):
        assert torch.equal(random_bits(3, [row], 10)[0], together[place])
    assert torch.equal(random_bits(3, range(4, 8), 4), together[:, :4])
    several = torch.cat([together, random_bits(4, range(4, 8), 10)])
    assert len(several.unique()) == several.numel()


def test_every_bit_is_fair_and_knows_nothing_of_its_neighbors() -> None:
    bits = random_bits(0, range(4), 50_000)
    coins = torch.stack([shifted_right(bits, place) & 1 for place in range(64)]).double()
    # 200,000 coins: means deviate by 0.0011 and products of two by as much.
    assert float((coins.mean(dim=(1, 2)) - 0.5).abs().max()) < 0.006
    signs = 2 * coins - 1
    assert float((signs[:, :, 1:] * signs[:, :, :-1]).mean(dim=(1, 2)).abs().max()) < 0.012
    assert float((signs[1:] * signs[:-1]).mean(dim=(1, 2)).abs().max()) < 0.012


@pytest.mark.parametrize("places", [1, 24, 63])
def test_zeros_come_in_from_the_left(places: int) -> None:
    bits = torch.tensor([-1, -(2**63), 2**63 - 1, 5])
    expected = [(int(number) % 2**64) >> places for number in bits]
    assert shifted_right(bits, places).tolist() == expected
