import pytest
import torch

from asnn_goose.information.bins import bin_codes, equal_mass_borders


def test_borders_lie_midway_by_hand() -> None:
    values = torch.tensor([[3.0], [0.0], [1.0], [2.0]])
    assert equal_mass_borders(values, 4).tolist() == [[0.5, 1.5, 2.5]]
    assert equal_mass_borders(values, 2).dtype == torch.float64


@pytest.mark.parametrize("tokens", [8, 23, 1000])
def test_bins_hold_equally_many_to_within_one(tokens: int) -> None:
    values = torch.randn(tokens, 3, generator=torch.Generator().manual_seed(0))
    codes = bin_codes(values, equal_mass_borders(values, 8))
    for channel in range(3):
        counts = torch.bincount(codes[:, channel], minlength=8)
        assert int(counts.max() - counts.min()) <= 1


def test_a_constant_channel_is_one_bin() -> None:
    values = torch.full((10, 1), 2.5)
    assert bin_codes(values, equal_mass_borders(values, 4)).unique().numel() == 1


def test_codes_count_the_borders_below_and_keep_the_batch() -> None:
    borders = torch.tensor([[0.0, 1.0], [10.0, 20.0]], dtype=torch.float64)
    values = torch.tensor([[[-1.0, 5.0]], [[0.5, 15.0]], [[1.5, 25.0]], [[0.0, 20.0]]])
    assert bin_codes(values, borders).tolist() == [[[0, 0]], [[1, 1]], [[2, 2]], [[0, 1]]]


def test_spikes_that_are_integers_fall_into_bins_of_their_own() -> None:
    spikes = torch.tensor([-1, 0, 1]).repeat(4).unsqueeze(1)
    borders = equal_mass_borders(spikes, 3)
    assert bin_codes(torch.tensor([[-1], [0], [1]]), borders).flatten().tolist() == [0, 1, 2]


def test_order_of_the_sample_changes_nothing() -> None:
    values = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(equal_mass_borders(values, 5), equal_mass_borders(values.flip(0), 5))


@pytest.mark.parametrize(
    ("values", "bins", "said"),
    [
        (torch.zeros(9, 1), 1, "bins must be at least 2, got 1"),
        (torch.zeros(3, 1), 4, "4 bins need at least 4 tokens, got 3"),
        (torch.full((9, 1), torch.nan), 4, "finite"),
    ],
)
def test_what_gives_no_borders_is_refused(values: torch.Tensor, bins: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        equal_mass_borders(values, bins)
