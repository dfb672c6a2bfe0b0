import numpy as np
import pytest

from asnn_goose.config_text import BLOCK_ROWS
from asnn_goose.data.mixture import MixedRows, block_shares, part_seed
from asnn_goose.data.tokens import TokenRows

BLOCKS = 7


def rows(count: int, window: int = 4) -> TokenRows:
    return TokenRows(np.zeros(count * window, dtype=np.uint16), window, window)


@pytest.fixture
def mixture() -> MixedRows:
    return MixedRows((rows(5), rows(3), rows(100)), (5.0, 3.0, 2.0))


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ((1.0,), (1000,)),
        ((0.5, 0.5), (500, 500)),
        ((1.0, 1.0, 1.0), (334, 333, 333)),
        # 999 * 1000 / 1000.5 = 998.5007..., 1.5 * 1000 / 1000.5 = 1.4992...
        ((999.0, 1.5), (999, 1)),
        # 142.857, 285.714, 571.428: the two largest remainders get the two rows that are left.
        ((1.0, 2.0, 4.0), (143, 286, 571)),
    ],
)
def test_a_block_is_shared_by_largest_remainder(weights: tuple[float, ...], shares: tuple[int, ...]) -> None:
    assert block_shares(weights) == shares


def test_shares_of_a_long_run_are_the_weights_to_within_a_block(mixture: MixedRows) -> None:
    for count in (1, 999, BLOCKS * BLOCK_ROWS, BLOCKS * BLOCK_ROWS + 123):
        parts, _ = mixture.assign(np.arange(count), seed=0)
        found = np.bincount(parts, minlength=3)
        assert (np.abs(found - count * np.array([0.5, 0.3, 0.2])) < BLOCK_ROWS).all()
    parts, _ = mixture.assign(np.arange(BLOCKS * BLOCK_ROWS), seed=0)
    assert np.bincount(parts).tolist() == [BLOCKS * 500, BLOCKS * 300, BLOCKS * 200]


def test_a_row_knows_how_many_of_its_part_came_before(mixture: MixedRows) -> None:
    parts, earlier = mixture.assign(np.arange(3 * BLOCK_ROWS), seed=0)
    for part in range(3):
        assert earlier[parts == part].tolist() == list(range(int((parts == part).sum())))


def test_a_row_is_the_same_whatever_is_asked_for_with_it(mixture: MixedRows) -> None:
    far = 10**12 + 500
    together = mixture.assign(np.arange(far, far + 900), seed=2)
    for place in (0, 499, 500, 899):
        alone = mixture.assign(np.array([far + place]), seed=2)
        assert [column[0] for column in alone] == [column[place] for column in together]


def test_blocks_and_seeds_have_orders_of_their_own(mixture: MixedRows) -> None:
    orders = {tuple(mixture.assign(np.arange(start, start + 100), seed)[0]) for start in (0, 1000) for seed in (0, 1)}
    assert len(orders) == 4


def test_parts_have_seeds_of_their_own() -> None:
    assert len({part_seed(seed, part) for seed in range(3) for part in range(3)} | {0, 1, 2}) == 12


def test_a_mixture_has_the_rows_of_its_parts(mixture: MixedRows) -> None:
    assert (len(mixture), mixture.window) == (108, 4)


@pytest.mark.parametrize(
    ("parts", "weights"),
    [
        ((), ()),
        ((rows(2),), (1.0, 1.0)),
        ((rows(2), rows(0)), (1.0, 1.0)),
        ((rows(2), rows(2, window=5)), (1.0, 1.0)),
        ((rows(2), rows(2)), (1.0, 0.0)),
        ((rows(2), rows(2)), (1.0, 1e-4)),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(parts: tuple[TokenRows, ...], weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must"):
        MixedRows(parts, weights)
