import pytest
import torch
from torch import nn

from asnn_goose.models import joint_linear as module
from asnn_goose.models.joint_linear import joinable, joint_linear

# Float64 rounding of sums of eight terms of order 1.
ROUNDING = {"rtol": 0.0, "atol": 1e-12}


def layers(biases):
    torch.manual_seed(0)
    return [nn.Linear(8, width, bias=bias).double() for width, bias in zip((5, 9, 7), biases, strict=True)]


@pytest.fixture
def always(monkeypatch):
    """One token is enough, on any device."""
    monkeypatch.setattr(module, "LEAST_TOKENS", {"cpu": 1, "cuda": 1})


@pytest.mark.parametrize("biases", [(False, False, False), (True, True, True), (False, True, False)])
def test_joined_outputs_and_gradients_are_the_layers_own(biases):
    parts = layers(biases)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    joint, separate = joint_linear(x, parts), torch.cat([part(x) for part in parts], dim=-1)
    assert joint.shape == (2, 3, 32)
    assert joint[..., 21:].count_nonzero() == 0
    torch.testing.assert_close(joint[..., :21], separate, **ROUNDING)
    leaves = [x, *(weight for part in parts for weight in part.parameters())]
    arriving = torch.randn_like(separate)
    found = torch.autograd.grad(joint[..., :21], leaves, arriving)
    for gradient, true in zip(found, torch.autograd.grad(separate, leaves, arriving), strict=True):
        torch.testing.assert_close(gradient, true, **ROUNDING)


@pytest.mark.parametrize("biases", [(False, False, False), (False, True, False)])
@pytest.mark.parametrize("shape", [(2, 3, 1), ()])
def test_a_factor_is_on_the_products_and_not_on_the_biases(biases, shape):
    parts, x = layers(biases), torch.randn(2, 3, 8, dtype=torch.float64)
    scale = torch.rand(shape, dtype=torch.float64)
    expected = [scale * (x @ part.weight.T) + (0.0 if part.bias is None else part.bias) for part in parts]
    torch.testing.assert_close(joint_linear(x, parts, scale)[..., :21], torch.cat(expected, dim=-1), **ROUNDING)


def test_few_tokens_and_other_devices_are_not_joined(monkeypatch):
    parts = layers((False,) * 3)
    assert not joinable(torch.zeros(10_000, 8), parts)
    monkeypatch.setattr(module, "LEAST_TOKENS", {"cpu": 6})
    assert joinable(torch.zeros(2, 3, 8), [*parts, None])
    assert not joinable(torch.zeros(1, 5, 8), parts)


@pytest.mark.usefixtures("always")
def test_a_layer_that_is_watched_or_of_another_kind_is_called_itself():
    x, parts = torch.zeros(3, 8), layers((False,) * 3)
    assert joinable(x, parts)
    handle = parts[1].register_forward_hook(lambda *_: None)
    assert not joinable(x, parts)
    handle.remove()
    assert joinable(x, parts)
    assert not joinable(x, [*parts, nn.Identity()])


@pytest.mark.usefixtures("always")
def test_a_compiled_product_is_the_same():
    parts, x = layers((False, True, False)), torch.randn(3, 8, dtype=torch.float64)

    def product(x):
        return joint_linear(x, parts) if joinable(x, parts) else x

    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), joint_linear(x, parts))
