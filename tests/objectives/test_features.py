import math

import pytest
import torch
from torch.nn import functional

from asnn_goose.objectives.features import (
    RELATION_TEMPERATURE,
    STATE_ERRORS,
    channel_error,
    cka_error,
    cosine_error,
    linear_cka,
    relation_error,
    relative_error,
    squared_error,
)

EXACT = 1e-9


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Float64 numbers from N(0, 1)."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens(*rows: list[float]) -> torch.Tensor:
    """One row of text with these states."""
    return torch.tensor([rows], dtype=torch.float64)


def test_an_error_counts_by_how_much_its_channel_moves() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted, off = torch.randn(2, 3, 50, 8, generator=generator)
    scale = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 100.0, 1000.0])
    plain = channel_error(wanted + 0.1 * off, wanted)
    assert plain.item() == pytest.approx(0.01, rel=0.3)
    shifted = 10.0 * torch.arange(8.0)
    # The same error in units of each channel's spread, whatever its size and wherever its mean.
    scaled = channel_error(scale * (wanted + 0.1 * off) + shifted, scale * wanted + shifted)
    assert scaled.item() == pytest.approx(plain.item(), rel=1e-3)
    assert channel_error(wanted, wanted).item() == 0.0


def test_a_channel_that_never_moves_stays_finite_and_does_not_outweigh_the_others() -> None:
    wanted = torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(0))
    wanted[..., 0] = 2.0
    found = (wanted + 0.1).requires_grad_()
    error = channel_error(found, wanted)
    error.backward()
    # One channel at the floor of a hundredth of the median, seven at about 1: (100 + 7) / 8 of the plain error.
    assert error.item() == pytest.approx(0.01 * 107 / 8, rel=0.3)
    assert found.grad.isfinite().all()
    assert channel_error(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)).item() == 0.0


def test_each_error_is_what_its_formula_says_by_hand() -> None:
    student, teacher = tokens([3.0, 4.0], [0.0, 2.0]), tokens([3.0, 0.0], [0.0, 1.0])
    assert squared_error(student, teacher).item() == pytest.approx((0 + 16 + 0 + 1) / 4, rel=EXACT)
    # Cosines 9 / 15 and 1.
    assert cosine_error(student, teacher).item() == pytest.approx((0.4 + 0.0) / 2, rel=EXACT)
    assert relative_error(student, teacher).item() == pytest.approx((16 / 9 + 1 / 1) / 2, rel=EXACT)


def test_cka_is_what_it_is_by_hand() -> None:
    x = torch.tensor([[1.0], [-1.0], [0.0]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    # X'Y = (1, -1), X'X = 2, Y'Y = [[2, 1], [1, 2]]: 2 / (2 sqrt(10)).
    assert linear_cka(x, y).item() == pytest.approx(1 / math.sqrt(10), rel=1e-7)
    # A constant on every row changes nothing, since columns are centered.
    assert linear_cka(x + 7.0, y - 3.0).item() == pytest.approx(1 / math.sqrt(10), rel=1e-7)


@pytest.mark.parametrize("unit_rows", [False, True])
def test_cka_of_products_of_channels_is_that_of_products_of_tokens(unit_rows: bool) -> None:
    x, y = random(20, 5), random(20, 7, seed=1)
    grams = []
    for part in (x, y):
        rows = part - part.mean(dim=0)
        rows = rows / (rows.norm(dim=1, keepdim=True) + 1e-8) if unit_rows else rows
        grams.append(rows @ rows.T)
    expected = (grams[0] * grams[1]).sum() / (grams[0].square().sum() * grams[1].square().sum()).sqrt()
    assert linear_cka(x, y, unit_rows).item() == pytest.approx(expected.item(), rel=1e-7)


@pytest.mark.parametrize("unit_rows", [False, True])
def test_cka_does_not_see_turns_sizes_and_shifts(unit_rows: bool) -> None:
    x, y = random(30, 6), random(30, 6, seed=1)
    turn, _ = torch.linalg.qr(random(6, 6, seed=2))
    plain = linear_cka(x, y, unit_rows).item()
    assert linear_cka(3.0 * x @ turn + 5.0, y, unit_rows).item() == pytest.approx(plain, rel=1e-6)
    assert linear_cka(x, -0.5 * y @ turn, unit_rows).item() == pytest.approx(plain, rel=1e-6)
    assert linear_cka(x, x @ turn, unit_rows).item() == pytest.approx(1.0, rel=1e-6)
    # No turn, but a stretch of one channel: that it sees.
    stretched = x * torch.tensor([10.0, 1, 1, 1, 1, 1], dtype=torch.float64)
    assert linear_cka(stretched, x, unit_rows).item() < 0.99


def test_one_loud_token_is_not_all_that_alignment_by_cka_sees() -> None:
    x, y = random(2, 50, 8), random(2, 50, 8, seed=1)
    quiet = cka_error(x, y).item()
    loud = [torch.cat([part[:, :1] * 0 + 1e4, part[:, 1:]], dim=1) for part in (x, y)]
    for unit_rows in (False, True):
        assert linear_cka(*(part.flatten(0, 1) for part in loud), unit_rows).item() > 0.999
    assert quiet > 0.9
    assert cka_error(*loud).item() == pytest.approx(quiet, abs=0.1)
    turn, _ = torch.linalg.qr(random(8, 8, seed=2))
    assert cka_error(3.0 * loud[0] @ turn, loud[1]).item() == pytest.approx(cka_error(*loud).item(), rel=1e-6)


def test_cka_is_found_in_full_precision_under_autocast() -> None:
    x, y = random(40, 6).float(), random(40, 6, seed=1).float()
    expected = linear_cka(x, y).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_cka(x, y).item() == expected


def test_cka_of_what_does_not_move_is_0_and_has_a_finite_gradient() -> None:
    still = torch.zeros(10, 4, dtype=torch.float64, requires_grad=True)
    for unit_rows in (False, True):
        alignment = linear_cka(still, random(10, 4), unit_rows)
        (gradient,) = torch.autograd.grad(alignment, still)
        assert alignment.item() == 0.0
        assert gradient.isfinite().all()


def test_relations_are_a_kl_over_earlier_tokens_by_hand() -> None:
    student, teacher = tokens([1.0, 0.0], [0.0, 2.0], [3.0, 0.0]), tokens([1.0, 0.0], [5.0, 0.0], [0.0, 1.0])
    # The second token has one earlier one, so nothing to choose. The third: cosines (1, 0) against (0, 0).
    found = torch.tensor([1.0, 0.0], dtype=torch.float64).div(RELATION_TEMPERATURE).log_softmax(0)
    expected = (0.5 * (math.log(0.5) - found)).sum() / 2
    assert relation_error(student, teacher).item() == pytest.approx(expected.item(), rel=1e-9)


def test_relations_know_no_width_no_size_and_no_later_token() -> None:
    x, y = random(2, 6, 4), random(2, 6, 7, seed=1)
    plain = relation_error(x, y).item()
    assert plain > 0.0
    assert relation_error(3.0 * x, y).item() == pytest.approx(plain, rel=EXACT)
    assert relation_error(x, functional.pad(x, (0, 3))).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", STATE_ERRORS)
def test_every_error_is_0_for_equal_states_and_has_the_gradient_of_finite_differences(name: str) -> None:
    error, teacher = STATE_ERRORS[name], random(2, 5, 4, seed=1)
    assert error(teacher, teacher).item() == pytest.approx(0.0, abs=1e-7)
    assert torch.autograd.gradcheck(lambda state: error(state, teacher), random(2, 5, 4).requires_grad_())


@pytest.mark.parametrize("name", STATE_ERRORS)
def test_no_error_is_found_in_half_precision(name: str) -> None:
    student, teacher = random(2, 5, 4), random(2, 5, 4, seed=1)
    found = STATE_ERRORS[name](student.bfloat16(), teacher.bfloat16())
    expected = STATE_ERRORS[name](student.bfloat16().double(), teacher.bfloat16().double())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
