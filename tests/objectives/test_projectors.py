import pytest
import torch
from pydantic import TypeAdapter

from asnn_goose.config_features import Projector
from asnn_goose.objectives.projectors import StateMixture, build_projector

STUDENT, TEACHER = 48, 64


def projector(seed: int = 0, **options: object) -> torch.nn.Module:
    """A projector as a recipe asks for it."""
    chosen = TypeAdapter(Projector).validate_python(options)
    return build_projector(chosen, STUDENT, TEACHER, torch.Generator().manual_seed(seed))


def test_the_recorded_projector_is_one_matrix_without_a_bias() -> None:
    made = projector(kind="linear", std=0.02)
    assert [parameter.shape for parameter in made.parameters()] == [(TEACHER, STUDENT)]
    assert made.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"kind": "none"}, []),
        ({"kind": "mlp"}, [(64, 48), (64, 64)]),
        ({"kind": "mlp", "hidden_width": 10}, [(10, 48), (64, 10)]),
        ({"kind": "factorized", "rank": 3}, [(3, 48), (64, 3)]),
    ],
)
def test_projectors_have_the_matrices_of_their_kind(options, sizes) -> None:
    assert [tuple(parameter.shape) for parameter in projector(**options).parameters()] == sizes


def test_a_factorized_projector_is_a_product_and_an_mlp_is_not() -> None:
    x = torch.randn(5, STUDENT, generator=torch.Generator().manual_seed(0))
    low, curved = projector(kind="factorized", rank=3), projector(kind="mlp")
    first, second = (matrix.weight for matrix in low)
    torch.testing.assert_close(low(x), x @ first.T @ second.T)
    torch.testing.assert_close(low(2 * x), 2 * low(x))
    assert not torch.allclose(curved(2 * x), 2 * curved(x))


def test_unless_told_otherwise_lengths_are_kept() -> None:
    x = torch.randn(500, STUDENT, generator=torch.Generator().manual_seed(1))
    assert projector(kind="linear")(x).square().mean().item() == pytest.approx(1.0, rel=0.1)


def test_a_frozen_projector_has_nothing_to_train() -> None:
    for kind in ("linear", "mlp", "factorized"):
        assert all(parameter.requires_grad for parameter in projector(kind=kind).parameters())
        assert not any(parameter.requires_grad for parameter in projector(kind=kind, frozen=True).parameters())


def test_projectors_are_drawn_by_their_generator_alone() -> None:
    same = projector(kind="linear"), projector(kind="linear")
    assert torch.equal(same[0].weight, same[1].weight)
    assert not torch.equal(same[0].weight, projector(seed=1, kind="linear").weight)


def test_a_mixture_is_the_mean_that_its_logits_say() -> None:
    states = list(torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)))
    mixture = StateMixture(3, center=1, spread=1.0)
    assert mixture.logits.tolist() == [-0.5, 0.0, -0.5]
    side = torch.tensor(-0.5).exp().item()
    expected = (side * states[0] + states[1] + side * states[2]) / (1 + 2 * side)
    torch.testing.assert_close(mixture(states), expected)
    mixture(states).square().sum().backward()
    assert mixture.logits.grad.abs().sum() > 0
