import subprocess
import sys

import pytest
import torch
from torch import nn

from asnn_goose.models.block import GooseBlock, build_encoder, build_mixer, build_norm, recomputed, run_block
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.goose_mixer import GooseMixer
from asnn_goose.models.wkv_mixer import WkvMixer
from asnn_goose.spikes.membrane import MembraneSpec

GOOSE = {"mixer": "goose", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}


def config(**choices):
    return GooseConfig(vocab_size=11, hidden_size=12, num_hidden_layers=2, max_position_embeddings=8, **choices)


@pytest.mark.parametrize(("choices", "kind"), [({}, WkvMixer), (GOOSE, GooseMixer)])
def test_the_configuration_names_the_mixer(choices, kind):
    assert type(build_mixer(config(**choices), 0)) is kind


def test_encoders_have_the_width_of_what_they_encode():
    made = config(**GOOSE, intermediate_size=20, gate_rank=3, spikes={"sites": "all", "amplitude": "channel"})
    block = GooseBlock(made, 0)
    widths = {
        site: encoder.amplitude.numel()
        for part in (block.mixer, block.feed_forward)
        for site, encoder in part.encoders.items()
    }
    assert widths == {"k": 8, "v": 8, "mixer_in": 12, "gate_mid": 3, "mixer_out": 16, "ffn_in": 12, "ffn_mid": 20}


def test_sites_that_are_not_asked_for_have_no_encoder():
    assert list(build_mixer(config(**GOOSE, spikes={"sites": ["v"]}), 0).encoders) == ["v"]


@pytest.mark.parametrize(("norm", "kind"), [("layernorm", nn.LayerNorm), ("rmsnorm", nn.RMSNorm)])
def test_norms_are_of_the_configured_kind(norm, kind):
    made = build_norm(config(norm=norm, norm_eps=1e-3))
    assert (type(made), made.eps, made.weight.shape) == (kind, 1e-3, (12,))


def test_encoder_options_reach_the_encoder():
    encoder = build_encoder(config(spikes={"levels": 2, "alpha": 0.5, "amplitude": "none", "scale": "token"}), "k", 12)
    assert (encoder.levels, encoder.alpha, encoder.amplitude, encoder.scale) == (2, 0.5, None, "token")


def test_membranes_are_for_the_sites_that_are_asked_for():
    spikes = {"sites": "all", "membrane": {"beta": 0.5, "detach_reset": True, "sites": ["v", "ffn_in"]}}
    block = GooseBlock(config(**GOOSE, spikes=spikes), 0)
    found = {site: part.membrane for half in (block.mixer, block.feed_forward) for site, part in half.encoders.items()}
    assert {site for site, membrane in found.items() if membrane is not None} == {"v", "ffn_in"}
    assert found["v"] == found["ffn_in"] == MembraneSpec(0.5, True)


def test_a_block_that_nobody_watches_hands_no_membrane_out():
    block = GooseBlock(config(**GOOSE, spikes={"sites": "all", "membrane": {}}), 0)
    block.mixer.encoders["v"].counts_events = True
    _, traces = run_block(block, torch.randn(2, 5, 12), None, None, None, watched=False)
    assert set(traces) == {"v"}
    assert traces["v"].values is traces["v"].membrane is None


def test_a_block_that_nobody_watches_shows_the_spikes_that_an_objective_asks_for():
    block = GooseBlock(GooseConfig(hidden_size=16), 0)
    block.mixer.encoders["k"].shows_spikes = True
    x = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for runner in (run_block, recomputed(run_block)):
        _, traces = runner(block, x, None, None, None, False)
        assert set(traces) == {"k"}
        assert traces["k"].values is None
        (gradient,) = torch.autograd.grad(traces["k"].sent.square().sum(), block.mixer.key.weight)
        assert gradient.abs().sum() > 0


def test_a_block_adds_its_parts_to_the_stream():
    torch.manual_seed(0)
    block = GooseBlock(config(), 0).double()
    x = torch.randn(1, 3, 12, dtype=torch.float64)
    y = x + block.mixer(block.mixer_norm(x)).residual
    found, spikes = block(x, None, None, None)
    fed, _ = block.feed_forward(block.feed_forward_norm(y))
    torch.testing.assert_close(found, y + fed, rtol=0, atol=1e-12)
    assert set(spikes) == {"k", "v"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_attention_heads": 3}, "multiple of"),
        ({"head_dim": None}, "head_dim"),
        ({"positions": "rotary"}, "2 rotary"),
    ],
)
def test_heads_that_do_not_fit_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        config(**{**GOOSE, **changes})


# In a process of its own: the compiler does not read what the tests' shape checks wrap.
COMPILED = """
import torch
from asnn_goose.models.block import run_block
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.student import GooseForCausalLM

torch.manual_seed(0)
config = GooseConfig(vocab_size=11, hidden_size=12, num_hidden_layers=2, max_position_embeddings=8, mixer="goose",
                     num_attention_heads=4, num_key_value_heads=2, head_dim=4, mlp_bias=True, spikes=SPIKES)
student = GooseForCausalLM(config).double()
ids = torch.randint(0, 11, (2, 8))
expected = student.model(input_ids=ids).last_hidden_state
weights = torch.randn(expected.shape, dtype=torch.float64)
(expected * weights).sum().backward()
gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
student.zero_grad()
student.model.block_runner = torch.compile(run_block, dynamic=False, fullgraph=True, backend=BACKEND)
found = student.model(input_ids=ids).last_hidden_state
(found * weights).sum().backward()
torch.testing.assert_close(found, expected)
for name, parameter in student.named_parameters():
    if name in gradients:
        # Sums in another order.
        assert (parameter.grad - gradients[name]).norm() <= 1e-9 * gradients[name].norm(), name
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
"""


# Encoders at all sites, with what is multiplied before and behind a product, and thresholds that learn.
EVERYWHERE = {"sites": "all+head", "levels": 3, "amplitude": "channel", "scale": "token", "learn_alpha": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spikes", "backend"),
    [({"amplitude": "none"}, "inductor"), (EVERYWHERE, "inductor"), (EVERYWHERE | {"membrane": {}}, "aot_eager")],
    ids=["recorded", "everywhere", "membranes"],
)
def test_a_compiled_block_serves_all_layers_and_computes_the_same(spikes, backend):
    code = f"SPIKES, BACKEND = {spikes}, {backend!r}\n{COMPILED}"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


FUSED = """
import torch
from asnn_goose.models import fused_inputs, joint_linear
from asnn_goose.models.block import run_block
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.student import GooseForCausalLM

fused_inputs.LEAST_TOKENS = joint_linear.LEAST_TOKENS = {"cpu": 1, "cuda": 1}
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
config = GooseConfig(vocab_size=11, hidden_size=12, num_hidden_layers=2, mixer="goose", positions="rotary",
                     mlp="swiglu", rotary_frequencies=[0.7**power for power in range(8)], num_attention_heads=2,
                     num_key_value_heads=1, head_dim=16,
                     spikes={"amplitude": "none", "scale": "token", "sites": SITES, "store_alpha": True})
student = GooseForCausalLM(config).to(device)
ids = torch.randint(0, 11, (2, 5), device=device)
outcomes = []
for runner in (run_block, torch.compile(run_block, dynamic=False, fullgraph=True, backend="aot_eager")):
    student.model.block_runner = runner
    output = student.model(input_ids=ids, output_spikes=True)
    assert output.spikes[0]["k"].dtype == torch.int8
    student.zero_grad()
    torch.sin(output.last_hidden_state * 3).sum().backward()
    outcomes.append([output.last_hidden_state, *(p.grad for p in student.parameters() if p.grad is not None)])
for found, expected in zip(*outcomes, strict=True):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("sites", ["recorded", "all+head"])
def test_the_short_cuts_of_many_tokens_are_compiled_once_for_all_layers(sites):
    pytest.importorskip("triton", reason="install triton, which a CUDA build of torch brings, to fuse a mixer's inputs")
    code = f"SITES = {sites!r}\n{FUSED}"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize("spikes", [{"sites": "recorded"}, {"sites": "all"}, {"sites": "all", "membrane": {}}], ids=str)
def test_a_block_that_is_computed_again_keeps_less_and_has_the_same_gradients(spikes):
    torch.manual_seed(0)
    block, x = (
        GooseBlock(config(**GOOSE, spikes=spikes), 0).double(),
        torch.randn(2, 5, 12, dtype=torch.float64),
    )
    results = []
    for runner in (run_block, recomputed(run_block)):
        kept = []

        def keep(tensor, kept=kept):
            kept.append(tensor.numel())
            return tensor

        leaf = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            found, spikes = runner(block, leaf, None, None, None, False)
        assert not spikes
        own = [part for part in block.parameters() if part.requires_grad]
        gradients = torch.autograd.grad(found.square().sum(), [leaf, *own], allow_unused=True)
        results.append((sum(kept), found.detach(), gradients))
    assert results[1][0] <= 2 * x.numel() < results[0][0]
    for plain, again in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(again, plain, rtol=0, atol=0)
