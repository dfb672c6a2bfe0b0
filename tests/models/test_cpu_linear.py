import pytest
import torch
from torch import nn
from torch.nn import functional

from asnn_goose.models.cpu_linear import LINEAR, onednn_linears


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.fixture
def x():
    return torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(0))


def test_torch_has_what_is_called_here():
    assert LINEAR is not None


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_products_are_those_of_torch_but_for_rounding_and_of_onednn(x, bias, monkeypatch):
    layer, calls = nn.Linear(48, 33, bias=bias), []
    monkeypatch.setattr("asnn_goose.models.cpu_linear.LINEAR", lambda *given: calls.append(1) or LINEAR(*given))
    with onednn_linears(nn.Sequential(layer)):
        found = layer(x)
    exact = functional.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-6)
    assert calls == [1]
    layer(x)
    assert calls == [1]
    assert "forward" not in vars(layer)


def test_a_layer_that_takes_gradients_is_torchs_own(x):
    layer, expected = nn.Linear(48, 33), []
    for within in (onednn_linears(), onednn_linears(layer)):
        with within:
            layer(x).square().sum().backward()
        expected.append(layer.weight.grad.clone())
        layer.zero_grad()
    assert torch.equal(*expected)


@torch.no_grad()
def test_other_layers_and_other_numbers_are_left_alone(x):
    layers = [Doubled(48, 33), nn.Linear(48, 33).double()]
    own = nn.Linear(48, 33)
    own.forward = lambda given: given
    with onednn_linears(*layers, own):
        assert all("forward" not in vars(layer) for layer in layers)
        assert own(x) is x
    assert own(x) is x


@torch.no_grad()
def test_hooks_see_what_a_layer_returns_and_no_rows_are_no_trouble(x):
    layer, seen = nn.Linear(48, 33), []
    layer.register_forward_hook(lambda module, given, returned: seen.append(returned))
    with onednn_linears(layer):
        returned = [layer(x), layer(x[:0])]
    assert all(one is other for one, other in zip(seen, returned, strict=True))
    assert returned[1].shape == (0, 5, 33)


def test_after_an_error_layers_are_as_they_were():
    layer = nn.Linear(4, 4)
    with pytest.raises(RuntimeError), onednn_linears(layer):
        layer(torch.zeros(1, 5))
    assert "forward" not in vars(layer)
