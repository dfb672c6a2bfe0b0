from collections.abc import Callable
from math import log, log2

import pytest
import torch

from asnn_goose.information.bins import bin_codes, equal_mass_borders
from asnn_goose.information.joint_counts import JointCounts, TableSizes
from asnn_goose.information.mutual_information import entropy_bits, mutual_information_bits

# Sums of a few logarithms in float64.
EXACT = 1e-12


def independent_tables(tokens: int, tables: int) -> torch.Tensor:
    """Tables of fair independent codes: 3 of the first variable, 8 of the second."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(24, (tables, tokens), generator=generator)
    return torch.nn.functional.one_hot(cells, 24).sum(dim=1).reshape(tables, 3, 8)


def test_entropy_by_hand() -> None:
    counts = torch.tensor([[1, 1, 2, 0], [4, 0, 0, 0], [1, 1, 1, 1]])
    assert entropy_bits(counts, corrected=False).tolist() == pytest.approx([1.5, 0.0, 2.0], abs=EXACT)
    bits = [1.5 + 2 / (8 * log(2)), 0.0, 2 + 3 / (8 * log(2))]
    assert entropy_bits(counts).tolist() == pytest.approx(bits, abs=EXACT)


def test_information_by_hand() -> None:
    counts = torch.tensor([[3, 1], [1, 3]])
    by_hand = 2 * 3 / 8 * log2(3 / 8 / 0.25) + 2 * 1 / 8 * log2(1 / 8 / 0.25)
    assert float(mutual_information_bits(counts, corrected=False)) == pytest.approx(by_hand, abs=EXACT)
    assert float(mutual_information_bits(counts)) == pytest.approx(by_hand + (2 + 2 - 4 - 1) / (16 * log(2)), abs=EXACT)


def test_a_variable_knows_itself_whole() -> None:
    counts = torch.diag(torch.tensor([5, 3, 2, 0]))
    entropy = -sum(p * log2(p) for p in (0.5, 0.3, 0.2))
    assert float(mutual_information_bits(counts, corrected=False)) == pytest.approx(entropy, abs=EXACT)


def test_a_product_of_margins_holds_no_information() -> None:
    counts = torch.outer(torch.tensor([1, 2, 3]), torch.tensor([4, 1, 5]))
    assert float(mutual_information_bits(counts, corrected=False)) == pytest.approx(0.0, abs=EXACT)


def test_the_plug_in_estimate_of_independent_variables_has_the_known_bias() -> None:
    tables, bias = independent_tables(1000, 2000), 2 * 7 / (2 * 1000 * log(2))
    # One estimate deviates by sqrt(14 / 2) / (1000 ln 2) = 0.004 bits, a mean of 2000 by 0.0001; terms in 1 / N**2 too.
    assert float(mutual_information_bits(tables, corrected=False).mean()) == pytest.approx(bias, abs=0.0005)
    assert abs(float(mutual_information_bits(tables).mean())) < 0.0005


def test_the_correction_leaves_little_of_the_bias_on_few_tokens() -> None:
    tables = independent_tables(100, 2000)
    plug_in, corrected = (float(mutual_information_bits(tables, way).mean()) for way in (False, True))
    assert plug_in > 2 * 7 / (2 * 100 * log(2))
    assert abs(corrected) < 0.15 * plug_in


def test_the_correction_may_go_below_zero() -> None:
    assert bool((mutual_information_bits(independent_tables(200, 100)) < 0).any())


def test_finer_bins_of_gaussians_approach_their_information_from_below(
    gaussians: Callable[[int, float], tuple[torch.Tensor, torch.Tensor]],
) -> None:
    x, y = gaussians(100_000, 0.8)
    truth, found = -0.5 * log2(1 - 0.8**2), []
    for bins in (2, 4, 8, 16, 32):
        counts = JointCounts(TableSizes(1, 1, bins, bins))
        counts.add(bin_codes(x, equal_mass_borders(x, bins)), bin_codes(y, equal_mass_borders(y, bins)))
        found.append(float(mutual_information_bits(counts.tables())))
    assert found == sorted(found)
    assert truth - 0.05 < found[-1] < truth
    # Two bins are the signs, of which equal ones have the share 1/2 + asin(r) / pi.
    same = 0.5 + torch.tensor(0.8).asin().item() / torch.pi
    assert found[0] == pytest.approx(1 + same * log2(same) + (1 - same) * log2(1 - same), abs=0.01)


def test_tables_of_a_batch_are_independent_and_may_be_floats() -> None:
    tables = independent_tables(50, 6)
    batch = mutual_information_bits(tables.reshape(2, 3, 3, 8).float())
    assert batch.shape == (2, 3)
    assert batch.dtype == torch.float64
    assert batch[1, 0] == mutual_information_bits(tables[3])


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one count"):
        mutual_information_bits(torch.zeros(2, 3, 3))
