import torch

from asnn_goose.information.randomness import generator_for


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
    assert torch.equal(torch.get_rng_state(), before)
