import math

import pytest
import torch

from asnn_goose.spikes import encoder
from asnn_goose.spikes.encoder import THRESHOLD_RANGE, SpikeEncoder
from asnn_goose.spikes.surrogate import SurrogateSpec

pytest.importorskip("numba", reason="install the cpu extra to test the numba encoder")
from asnn_goose.kernels.encoder_numba import encode_numba


def tokens(dtype):
    """Random tokens, a silent one, a faint one and a loud one."""
    x = torch.randn(7, 3, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[0, 0] = 0.0
    x[1, 1] *= 1e-4
    x[2] *= 100.0
    return x.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [1, 2, 8])
@pytest.mark.parametrize("kind", ["clipped_ste", "ste"])
def test_spikes_steps_and_gradients_are_those_of_torch(dtype, levels, kind, monkeypatch):
    monkeypatch.setattr(encoder, "_numba_encoder", lambda: None)
    surrogate = SurrogateSpec(kind, width=0.7, gradient_scale=0.5)
    x, scale = tokens(dtype), 3.0
    expected = SpikeEncoder(33, levels, alpha=0.8, amplitude="none", scale="token", surrogate=surrogate)(x)
    limit = math.inf if kind == "ste" else levels - 0.5 + 0.7
    values, step = encode_numba(x, 0.8, THRESHOLD_RANGE, levels, limit, 0.5)
    assert torch.equal(values, expected.values)
    tolerance = {"rtol": 1e-6 if dtype == torch.float32 else 1e-14, "atol": 0.0}
    torch.testing.assert_close(step, expected.token_scale, **tolerance)
    weights = torch.linspace(-1, 1, x.numel()).view_as(x).to(x) * scale
    found, truth = (torch.autograd.grad(part, x, weights)[0] for part in (values, expected.values))
    torch.testing.assert_close(found, truth, **tolerance)


def test_the_encoder_takes_it_where_there_is_enough_to_do(monkeypatch):
    calls = []
    monkeypatch.setattr(encoder, "_numba_encoder", lambda: lambda *given: calls.append(1) or encode_numba(*given))
    module = SpikeEncoder(64, amplitude="none", scale="token")
    module(torch.randn(2, 8, 64))
    assert not calls
    module(torch.randn(2, 256, 64))
    assert calls
    SpikeEncoder(64, learn_alpha=True)(torch.randn(2, 256, 64))
    SpikeEncoder(64, surrogate=SurrogateSpec("triangle"))(torch.randn(2, 256, 64))
    assert len(calls) == 1


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_finite_is_not_turned_into_a_spike_unseen(poison):
    """The guards of training look at the loss: a number that is none must reach it."""
    x = torch.ones(2, 5)
    x[1, 2] = poison
    values, step = encode_numba(x, 1.0, THRESHOLD_RANGE, 1, 1.5, 1.0)
    assert torch.equal(values[0], torch.ones(5))
    if math.isnan(poison):
        assert step[1].isnan()
        assert values[1].isnan().all()


def test_every_bit_is_the_same_for_one_thread_and_for_two():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(encode_numba(tokens(torch.float32), 1.0, THRESHOLD_RANGE, 1, 1.5, 1.0))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
