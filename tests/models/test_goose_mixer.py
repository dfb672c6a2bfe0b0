from dataclasses import replace

import pytest
import torch

from asnn_goose.models import fused_inputs, joint_linear
from asnn_goose.models.goose_mixer import GooseMixer, GooseShape
from asnn_goose.models.rotary import RotaryPositions
from asnn_goose.spikes.encoder import SpikeEncoder

WIDTH = 16
EVERYWHERE = ("k", "v", "mixer_in", "gate_mid", "mixer_out")
SHAPE = GooseShape(WIDTH, heads=4, key_value_heads=2, head_width=6, gate_rank=3)


def mixer(shape=SHAPE, spiking=True, sites=("k", "v"), **choices):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state, read = shape.state_width, shape.read_width
        widths = {"k": state, "v": state, "mixer_in": shape.width, "gate_mid": shape.gate_rank, "mixer_out": read}
        encoders = {site: SpikeEncoder(widths[site], amplitude="none", scale="token") for site in sites}
        return GooseMixer(shape, encoders if spiking else {}, **choices).double()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_starts_as_decaying_linear_attention_over_its_projections():
    """Convolution and gate do nothing yet, and hardly anything is erased."""
    fresh, x = mixer(spiking=False), noise(1, 9, WIDTH)
    with torch.no_grad():
        fresh.rates.bias[2:4] = -40.0
    r, k, v = (
        projection(x).unflatten(-1, (-1, 6)) for projection in (fresh.receptance, fresh.key, fresh.value)
    )  # fmt: skip
    k = k / k.norm(dim=-1, keepdim=True).clamp_min(1)
    rate = torch.sigmoid(fresh.rates.bias[:2])
    log_decay, write = -0.6065306597126334 * rate, torch.sigmoid(fresh.rates.bias[4:])
    distance = torch.arange(9).unsqueeze(1) - torch.arange(9)
    weight = (distance.unsqueeze(-1) * log_decay).exp().masked_fill((distance < 0).unsqueeze(-1), 0)
    grouped = r.unflatten(2, (2, 2))
    read = torch.einsum("bthgk,bshk,tsh,h,bshv->bthgv", grouped, k, weight, write, v).flatten(2, 3)
    normed = read * (read.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    torch.testing.assert_close(fresh(x).residual, fresh.output(normed.flatten(2)), rtol=0, atol=1e-10)


def test_timescales_are_spread_over_the_heads():
    shape = GooseShape(WIDTH, heads=3, key_value_heads=3, head_width=4)
    bias = mixer(shape, spiking=False).rates.bias[:3]
    timescales = 1 / (0.6065306597126334 * torch.sigmoid(bias))
    assert timescales.tolist() == pytest.approx([8.0, (8.0 * 1000.0) ** 0.5, 1000.0], rel=1e-3)


def test_keys_and_values_are_read_as_spikes():
    spikes = {site: trace.values for site, trace in mixer()(noise(2, 7, WIDTH)).traces.items()}
    assert set(spikes) == {"k", "v"}
    assert all(set(values.unique().tolist()) <= {-1.0, 0.0, 1.0} for values in spikes.values())
    assert spikes["k"].shape == (2, 7, SHAPE.state_width)


def test_silent_tokens_stay_finite_forward_and_backward():
    x = torch.zeros(2, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    spiking = mixer()
    spiking(x).residual.sum().backward()
    gradients = [x.grad, *(parameter.grad for parameter in spiking.parameters() if parameter.grad is not None)]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_padding_leaves_state_and_convolution_untouched():
    spiking, x = mixer(), noise(1, 9, WIDTH)
    with torch.no_grad():
        spiking.taps.copy_(noise(*spiking.taps.shape, seed=1))
    gaps = torch.tensor([[False, True, False, True, True, False, True, True, False]])
    padded, alone = spiking(x, valid=gaps), spiking(x[gaps].unsqueeze(0))
    torch.testing.assert_close(padded.residual[gaps], alone.residual[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(padded.memory.state, alone.memory.state, rtol=0, atol=1e-12)
    torch.testing.assert_close(padded.memory.shift, alone.memory.shift, rtol=0, atol=1e-12)


def test_rotary_positions_turn_receptance_and_key():
    rotary, x = RotaryPositions((1.0, 0.3, 0.1)), noise(1, 6, WIDTH)
    turning = mixer(rotary=rotary)
    first, second = (
        turning(x, tables=rotary.tables(torch.arange(6).unsqueeze(0) * pace, x.dtype)).residual for pace in (1, 2)
    )
    assert torch.equal(first, turning(x).residual)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, mixer()(x).residual)


def test_memory_is_constant_in_the_number_of_tokens():
    spiking = mixer()
    short, long = (spiking(noise(1, time, WIDTH)).memory for time in (3, 200))
    assert short.state.shape == long.state.shape == (1, 2, 6, 6)
    assert short.shift.shape == long.shift.shape == (1, 3, 48)


def on_many_tokens(monkeypatch, fused, joint):
    """Let both short cuts, or one, be taken for any number of tokens and on any device."""
    for module, wanted in ((fused_inputs, fused), (joint_linear, joint)):
        monkeypatch.setattr(module, "LEAST_TOKENS", dict.fromkeys(("cpu", "cuda"), 1) if wanted else {})


def outcomes(mixer, x, rotary):
    """Residual, tail, the gradients of x and all weights, and the spikes."""
    tables = (
        None
        if rotary is None
        else rotary.tables(torch.arange(x.shape[1], device=x.device).expand(x.shape[:2]), x.dtype)
    )
    x = x.detach().requires_grad_()
    mixed = mixer(x, tables=tables)
    leaves = [x, *mixer.parameters()]
    incoming = torch.sin(torch.arange(x.numel(), device=x.device)).view(x.shape)
    return [mixed.residual, mixed.memory.shift, *torch.autograd.grad(mixed.residual, leaves, incoming)], mixed.traces


@pytest.mark.parametrize(("fused", "joint"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("turning", "sites"), [(True, ("k", "v")), (False, ("k", "v")), (True, EVERYWHERE)])
def test_short_cuts_of_many_tokens_change_nothing(fused, joint, turning, sites, kernel_device, monkeypatch):
    if fused:
        pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to fuse the inputs")
    rotary = RotaryPositions(tuple(0.7**power for power in range(8))) if turning else None
    shape = GooseShape(WIDTH, 2, 1, 16, bias=True, gate_rank=3)
    made = mixer(shape, sites=sites, rotary=rotary, backend="auto").float().to(kernel_device)
    x = noise(2, 5, WIDTH).float().to(kernel_device)
    with torch.no_grad():
        made.taps.add_(0.3 * noise(*made.taps.shape, seed=1).to(made.taps))
        made.gate_up.weight.normal_(std=0.3, generator=torch.Generator(kernel_device).manual_seed(0))
    on_many_tokens(monkeypatch, False, False)
    expected, plain = outcomes(made, x, rotary)
    on_many_tokens(monkeypatch, fused, joint)
    found, traces = outcomes(made, x, rotary)
    for site, trace in traces.items():
        assert trace.values.dtype == (torch.int8 if fused and site in "kv" else torch.float32)
        assert torch.equal(trace.values.float(), plain[site].values)
    for one, true in zip(found, expected, strict=True):
        torch.testing.assert_close(one, true, rtol=1e-4, atol=1e-5 * true.detach().abs().max().item())


@pytest.mark.parametrize("fused", [True, False])
def test_spikes_are_for_looking_at_alone(fused, kernel_device, monkeypatch):
    if fused:
        pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to fuse the inputs")
    on_many_tokens(monkeypatch, fused, False)
    made = mixer(GooseShape(WIDTH, 2, 1, 16, gate_rank=3), backend="auto").float().to(kernel_device)
    mixed = made(noise(1, 3, WIDTH).float().to(kernel_device))
    assert mixed.residual.requires_grad
    assert not any(trace.values.requires_grad for trace in mixed.traces.values())


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_on_a_gpu_a_sequence_is_its_parts_its_steps_and_its_padded_self(backend):
    """Laws 1, 2 and 16 without spikes, whose flips at ties would hide everything else."""
    torch.manual_seed(0)
    shape = GooseShape(width=64, heads=4, key_value_heads=2, head_width=16)
    mixer = GooseMixer(shape, {}, backend=backend).cuda()
    x = torch.randn(2, 70, 64, device="cuda")
    whole = mixer(x).residual
    for cuts in ((33, 70), tuple(range(1, 71))):
        memory, parts, start = None, [], 0
        for end in cuts:
            mixed = mixer(x[:, start:end], memory)
            memory, start = mixed.memory, end
            parts.append(mixed.residual)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=2e-3, atol=2e-4)
    padded = torch.cat((torch.randn(2, 9, 64, device="cuda"), x), dim=1)
    valid = torch.arange(79, device="cuda").expand(2, 79) >= 9
    torch.testing.assert_close(mixer(padded, None, valid).residual[:, 9:], whole, rtol=2e-3, atol=2e-4)


def test_what_is_read_of_bfloat16_inputs_is_normalized_in_the_dtype_of_the_state():
    single, x = mixer(spiking=False).float(), noise(2, 5, WIDTH).float()
    memory = single.initial_memory(x)
    inputs = single.inputs(x, memory)
    half = {name: getattr(inputs, name).bfloat16() for name in ("receptance", "key", "value")}
    read, _ = single.recall(replace(inputs, **half), memory.state)
    assert read.dtype == torch.float32
    sizes = read.unflatten(-1, (-1, SHAPE.head_width)).square().mean(-1)
    torch.testing.assert_close(sizes, torch.ones_like(sizes), rtol=0, atol=1e-2)
