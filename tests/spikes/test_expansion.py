import pytest
import torch

from asnn_goose.spikes.expansion import collapse, expand


def all_values(levels, dtype):
    return torch.arange(-levels, levels + 1).to(dtype).repeat(2, 3)


@pytest.mark.parametrize("code", ["unary", "bitwise"])
@pytest.mark.parametrize("levels", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.bfloat16, torch.float64])
def test_what_is_expanded_collapses_to_itself(code, levels, dtype):
    values = all_values(levels, dtype)
    steps = expand(values, levels, code)
    assert steps.dtype == dtype
    assert set(steps.unique().tolist()) == {-1, 0, 1}
    assert torch.equal(collapse(steps, code), values)


def test_unary_steps_are_as_many_as_levels_and_their_events_as_many_as_the_value():
    steps = expand(torch.tensor([3, -2, 0, 4]), 4)
    assert steps.tolist() == [[1, -1, 0, 1], [1, -1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 1]]


@pytest.mark.parametrize(("levels", "bits"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4)])
def test_bitwise_steps_are_binary_digits(levels, bits):
    steps = expand(torch.tensor([levels, -levels]), levels, "bitwise")
    digits = [int(digit) for digit in reversed(f"{levels:b}")]
    assert steps.tolist() == [[digit, -digit] for digit in digits]
    assert len(steps) == bits


@pytest.mark.parametrize("code", ["unary", "bitwise"])
def test_a_product_of_the_steps_is_the_product_of_the_values(code):
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-5, 6, (4, 7), generator=generator)
    weight = torch.randint(-9, 10, (7, 3), generator=generator)
    assert torch.equal(collapse(expand(values, 5, code) @ weight, code), values @ weight)


def test_less_than_one_level_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^levels must be at least 1, got 0: 1 is ternary$"):
        expand(torch.zeros(3), 0)
