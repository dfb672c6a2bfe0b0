import pytest
import torch
from torch import nn

from asnn_goose.models.spiking_linear import (
    Before,
    LayerInput,
    encode_site,
    layer_input,
    membranes_after,
    spiking_linear,
)
from asnn_goose.spikes.encoder import SpikeEncoder
from asnn_goose.spikes.membrane import MembraneSpec
from asnn_goose.spikes.surrogate import SurrogateSpec

WIDTH, COLUMNS = 10, 7
# Float64 rounding of sums of ten terms of order 1.
ROUNDING = {"rtol": 0.0, "atol": 1e-12}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def encoders(**choices):
    encoder = SpikeEncoder(WIDTH, **choices).double()
    if encoder.amplitude is not None:
        encoder.amplitude.data.copy_(0.5 + noise(*encoder.amplitude.shape, seed=3).abs())
    return nn.ModuleDict({"ffn_in": encoder})


def layer(bias=True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(WIDTH, COLUMNS, bias=bias).double()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("amplitude", ["none", "scalar", "channel"])
@pytest.mark.parametrize("scale", ["none", "token"])
def test_a_layer_gives_what_it_gives_for_the_numbers_its_spikes_stand_for(bias, amplitude, scale):
    made, part, x = encoders(levels=3, amplitude=amplitude, scale=scale), layer(bias), noise(2, 4, WIDTH)
    found = spiking_linear(part, layer_input(made, "ffn_in", x, {}))
    torch.testing.assert_close(found, part(made["ffn_in"](x).dense()), **ROUNDING)


@pytest.mark.parametrize("membrane", [None, MembraneSpec()])
@pytest.mark.parametrize("amplitude", ["none", "scalar"])
def test_a_hook_on_the_layer_sees_integers(amplitude, membrane):
    seen, part = [], layer()
    part.register_forward_hook(lambda module, given, result: seen.append(given[0]))
    traces = {}
    made = encoders(levels=2, amplitude=amplitude, scale="token", membrane=membrane)
    spiking_linear(part, layer_input(made, "ffn_in", noise(3, 9, WIDTH), traces))
    assert set(seen[0].unique().tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert torch.equal(seen[0], traces["ffn_in"].values)


def test_a_site_takes_its_membrane_from_before_and_leaves_it_in_its_trace():
    made, x, traces, first = encoders(membrane=MembraneSpec()), noise(2, 9, WIDTH).requires_grad_(), {}, {}
    made["ffn_in"].counts_events = True
    whole = encode_site(made, "ffn_in", x, traces)
    encode_site(made, "ffn_in", x[:, :4], first)
    padded = torch.tensor([[True, False, True, True, True, True]] * 2)
    rest = torch.cat((x[:, 4:5], 9 * noise(2, 1, WIDTH), x[:, 5:]), dim=1)
    second = encode_site(made, "ffn_in", rest, first, Before(membranes_after(first), padded))
    assert torch.equal(second[:, [0, 2, 3, 4, 5]], whole[:, 4:])
    assert second[:, 1].count_nonzero() == 0
    assert torch.equal(first["ffn_in"].membrane, traces["ffn_in"].membrane)
    assert traces["ffn_in"].events == traces["ffn_in"].values.abs().mean() > 0
    assert traces["ffn_in"].events.requires_grad


def test_a_site_without_a_membrane_leaves_none():
    traces = {}
    layer_input(encoders(), "ffn_in", noise(2, 4, WIDTH), traces, Before({}, None))
    assert membranes_after(traces) == {}


def test_without_an_encoder_a_layer_reads_its_input():
    x, part, spikes = noise(2, 3, WIDTH), layer(), {}
    given = layer_input(nn.ModuleDict(), "ffn_in", x, spikes)
    assert torch.equal(spiking_linear(part, given), part(x))
    assert torch.equal(given.dense(), x)
    assert not spikes


def test_the_output_has_the_dtype_of_the_product():
    part = layer().float()
    given = LayerInput(torch.ones(2, WIDTH), torch.full((2, 1), 0.5))
    with torch.autocast("cpu", torch.bfloat16):
        assert spiking_linear(part, given).dtype == torch.bfloat16


BUMPS = {
    "clipped_ste": lambda z, u: (z.abs() <= 3.0).double(),
    "ste": lambda z, u: torch.ones_like(z),
    "sigmoid": lambda z, u: 4 * torch.sigmoid(4 * u) * torch.sigmoid(-4 * u),
    "triangle": lambda z, u: (1 - 2 * u.abs()).clamp_min(0),
    "superspike": lambda z, u: (1 + 2 * u.abs()) ** -2,
    "atan": lambda z, u: 1 / (1 + (2 * u) ** 2),
}


@pytest.mark.parametrize("kind", BUMPS)
def test_gradients_at_a_layers_input_are_the_written_formula(kind):
    """h(z) / step into x; s - z h(z) times the mean magnitude, twice, into alpha; three levels, width 1/2, factor 3."""
    surrogate = SurrogateSpec(kind, width=0.5, gradient_scale=3.0)
    made = encoders(levels=3, scale="token", amplitude="channel", learn_alpha=True, surrogate=surrogate)
    encoder, part = made["ffn_in"], layer()
    x, arriving = noise(4, WIDTH).requires_grad_(), noise(4, COLUMNS, seed=1)
    (spiking_linear(part, layer_input(made, "ffn_in", x, {})) * arriving).sum().backward()
    mean = x.detach().abs().mean(-1, keepdim=True)
    z = x.detach() / (2 * mean)
    # Spikes change where |z| is 1/2, 3/2 and 5/2.
    nearest = torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64)
    u = (z.abs().unsqueeze(-1) - nearest).gather(-1, (z.abs().unsqueeze(-1) - nearest).abs().argmin(-1, True))[..., 0]
    slope = 3.0 * BUMPS[kind](z, u)
    values = z.sign() * (z.abs() + 0.5).floor().clamp_max(3)
    back = (arriving @ part.weight) * encoder.amplitude.detach()
    torch.testing.assert_close(x.grad, back * slope, **ROUNDING)
    torch.testing.assert_close(encoder.alpha.grad, (back * (values - z * slope) * 2 * mean).sum(), **ROUNDING)
    by_values = ((arriving @ part.weight) * values * 2 * mean).sum(0)
    torch.testing.assert_close(encoder.amplitude.grad, by_values, **ROUNDING)
