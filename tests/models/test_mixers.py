import math

import pytest
import torch
from torch.nn import functional

from asnn_goose.models import joint_linear
from asnn_goose.models.mixers import FeedForward, shift_tokens
from asnn_goose.spikes.encoder import SpikeEncoder

# Float64 rounding of sums of some dozen terms of order 1.
ROUNDING = {"rtol": 0.0, "atol": 1e-12}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_shift_gives_each_token_its_predecessor():
    x, before = noise(2, 4, 3), noise(2, 3, seed=1)
    previous, last = shift_tokens(x, before, None)
    assert torch.equal(previous, torch.stack((before, x[:, 0], x[:, 1], x[:, 2]), dim=1))
    assert torch.equal(last, x[:, 3])


def test_shift_passes_over_padding():
    x, before = noise(1, 5, 3), noise(1, 3, seed=1)
    previous, last = shift_tokens(x, before, torch.tensor([[False, True, False, True, False]]))
    assert torch.equal(previous[0, 1], before[0])
    assert torch.equal(previous[0, 3], x[0, 1])
    assert torch.equal(last[0], x[0, 3])


@pytest.mark.parametrize("activation", ["silu", "gelu", "swiglu"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("joined", [False, True])
def test_feed_forward_is_its_formula(activation, bias, joined, monkeypatch):
    monkeypatch.setattr(joint_linear, "LEAST_TOKENS", {"cpu": 1} if joined else {})
    part, x = FeedForward(6, 10, activation, bias).double(), noise(2, 3, 6)
    inner = x @ part.up.weight.T + (part.up.bias if bias else 0.0)
    tanh_form = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    hidden = {"silu": inner * torch.sigmoid(inner), "gelu": tanh_form}.get(activation)
    if part.gate is not None:
        gate = functional.linear(x, part.gate.weight, part.gate.bias)
        hidden = gate * torch.sigmoid(gate) * inner
    expected = hidden @ part.down.weight.T + (part.down.bias if bias else 0.0)
    found, spikes = part(x)
    torch.testing.assert_close(found, expected, **ROUNDING)
    assert not spikes


def test_only_swiglu_has_a_gate():
    assert FeedForward(6, 10, "silu").gate is None
    assert FeedForward(6, 10, "swiglu").gate is not None


@pytest.mark.gpu
def test_a_joined_swiglu_of_many_tokens_on_a_gpu_learns_what_its_layers_would(monkeypatch):
    part, x = FeedForward(24, 40, "swiglu").cuda(), noise(3, 1000, 24).float().cuda()
    outcomes = []
    for least in ({"cuda": 1}, {}):
        monkeypatch.setattr(joint_linear, "LEAST_TOKENS", least)
        given = x.clone().requires_grad_()
        output = part(given)
        outcomes.append([output, *torch.autograd.grad(output.square().sum(), [given, *part.parameters()])])
    for found, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("bias", [False, True])
def test_gate_and_up_as_one_product_read_the_same_spikes(bias, monkeypatch):
    encoders = {"ffn_in": SpikeEncoder(6, 2, scale="token"), "ffn_mid": SpikeEncoder(10, 2, scale="token")}
    part, x = FeedForward(6, 10, "swiglu", bias, encoders).double(), noise(2, 3, 6)
    expected, traces = part(x)
    assert set(traces) == {"ffn_in", "ffn_mid"}
    monkeypatch.setattr(joint_linear, "LEAST_TOKENS", {"cpu": 1})
    found, joint_traces = part(x)
    torch.testing.assert_close(found, expected, **ROUNDING)
    assert all(torch.equal(trace.values, joint_traces[site].values) for site, trace in traces.items())
