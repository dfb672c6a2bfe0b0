import pytest
import torch

from asnn_goose.information.products import SelfProducts, even_columns


def added(parts: list[torch.Tensor]) -> torch.Tensor:
    products = SelfProducts(parts[0].shape[1])
    for part in parts:
        products.add(part)
    return products.total()


# Narrower than a strip, as wide as one, one wider, and strips of which the last is narrower.
@pytest.mark.parametrize("width", [1, 31, 32, 33, 100, 260])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_both_triangles_are_those_of_the_product(width: int, dtype: torch.dtype) -> None:
    x = torch.randint(-3, 4, (50, width), generator=torch.Generator().manual_seed(0)).to(dtype)
    found = added([x])
    assert found.dtype == torch.float64
    assert torch.equal(found, x.double().T @ x.double())


def test_batches_add_up_whatever_their_type() -> None:
    x = torch.randint(-3, 4, (50, 70), generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(added([x[:20], x[20:23].float(), x[23:]]), added([x]))


def test_a_look_at_the_total_changes_nothing() -> None:
    products, x = SelfProducts(40), torch.ones(3, 40)
    products.add(x)
    products.total().zero_()
    products.add(x)
    assert torch.equal(products.total(), torch.full((40, 40), 6.0, dtype=torch.float64))


def test_even_columns_are_the_next_multiple() -> None:
    assert [even_columns(width) for width in (1, 8, 9, 258)] == [8, 8, 16, 264]
