import pytest
import torch

from asnn_goose.models import convolution
from asnn_goose.models.convolution import short_convolution


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=["compiled", "torch"])
def form(request, monkeypatch):
    """With numba where it is installed, and without."""
    if request.param == "torch":
        monkeypatch.setattr(convolution, "_compiled_kernel", lambda: None)


@pytest.mark.parametrize(("taps", "time"), [(4, 8), (4, 2), (4, 1), (2, 5), (7, 3), (1, 3)])
def test_each_channel_is_the_weighted_sum_of_its_last_values(form, taps, time):
    weights, x, tail = noise(taps, 5, seed=1), noise(2, time, 5, seed=2), noise(2, taps - 1, 5, seed=3)
    mixed, following = short_convolution(x, weights, tail)
    whole = torch.cat((tail.flip(1), x), dim=1)
    expected = sum(weights[place] * whole[:, taps - 1 - place : taps - 1 - place + time] for place in range(taps))
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-12)
    assert torch.equal(following, whole[:, time:].flip(1))


def test_a_sequence_cut_in_two_gives_the_same_with_the_tail_carried(form):
    weights, x, start = noise(4, 5), noise(2, 9, 5, seed=2), noise(2, 3, 5, seed=3)
    whole, end = short_convolution(x, weights, start)
    first, tail = short_convolution(x[:, :2], weights, start)
    second, last = short_convolution(x[:, 2:], weights, tail)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole, rtol=0, atol=1e-12)
    assert torch.equal(last, end)


def test_tokens_that_are_not_valid_are_passed_over(form):
    weights, x, start = noise(4, 5), noise(1, 9, 5, seed=2), noise(1, 3, 5, seed=3)
    valid = torch.tensor([[True, False, True, True, False, False, True, True, True]])
    padded, tail = short_convolution(x, weights, start, valid)
    alone, alone_tail = short_convolution(x[valid].unsqueeze(0), weights, start)
    torch.testing.assert_close(padded[valid], alone[0], rtol=0, atol=1e-12)
    assert torch.equal(tail, alone_tail)


def test_half_precision_input_is_summed_in_the_precision_of_the_taps(form):
    weights, x = noise(4, 5).float(), noise(1, 9, 5, seed=2).bfloat16()
    mixed, _ = short_convolution(x, weights, x.new_zeros(1, 3, 5))
    expected, _ = short_convolution(x.float(), weights, torch.zeros(1, 3, 5))
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-6)
