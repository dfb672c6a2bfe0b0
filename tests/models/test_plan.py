import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from asnn_goose.models import goose_mixer
from asnn_goose.models.folding import fold_amplitudes
from asnn_goose.models.plan import layer_plan, macs_per_token, spike_fed_mac_share

TOKENS = 16
GOOSE = {"mixer": "goose", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "mlp": "swiglu"}


def operations(student, kind):
    return [operation for operation in layer_plan(student.config) if operation.kind == kind]


def test_every_matmul_names_a_linear_of_its_size(student):
    block = student.model.layers[0]
    for operation in operations(student, "matmul"):
        linear = block.get_submodule(operation.module)
        assert type(linear) is nn.Linear
        assert linear.in_features * linear.out_features == operation.macs


def test_every_linear_of_a_block_is_named_once(student):
    linears = [name for name, module in student.model.layers[0].named_modules() if isinstance(module, nn.Linear)]
    assert sorted(operation.module for operation in operations(student, "matmul")) == sorted(linears)


def test_every_norm_of_a_block_is_named_once(student):
    block = student.model.layers[0]
    norms = [name for name, module in block.named_modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm)]
    assert sorted(operation.module for operation in operations(student, "norm")) == sorted(norms)


@pytest.mark.parametrize("sites", [[], ["k"], ["v"], ["k", "v"]])
def test_what_is_encoded_is_what_the_configuration_says(make_student, sites):
    student = make_student(spikes={"sites": sites})
    encoders = {operation.module: operation.output for operation in operations(student, "encode")}
    assert encoders == {f"mixer.encoders.{site}": site for site in sites}
    assert sorted(student.model.layers[0].mixer.encoders) == sorted(sites)


def test_every_tensor_is_made_before_it_is_read(student):
    made = {"x"}
    for operation in layer_plan(student.config):
        assert set(operation.inputs) <= made
        assert operation.output not in made
        made.add(operation.output)


def test_every_tensor_but_the_last_is_read(student):
    plan = layer_plan(student.config)
    read = {name for operation in plan for name in operation.inputs}
    assert [operation.output for operation in plan if operation.output not in read] == ["x_next"]


def test_macs_are_what_pytorch_counts(student, monkeypatch):
    # What a head writes and reads in its state is a product of activations, not of weights.
    monkeypatch.setattr(goose_mixer, "delta_rule", lambda r, k, v, *rates: (r.repeat(1, 1, 1, 1, 1), rates[3]))
    ids = torch.ones(2, TOKENS // 2, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        student(ids)
    assert macs_per_token(student.config) == counter.get_total_flops() / 2 / TOKENS


@pytest.mark.parametrize("sites", [[], ["k"], ["k", "v"]])
def test_spikes_at_key_and_value_feed_no_matmul(make_student, sites):
    assert spike_fed_mac_share(make_student(spikes={"sites": sites}).config) == 0.0


def counted_shares(student, ids):
    """Shares of the multiply-accumulates whose real inputs are small integers: of blocks alone, and with the head."""
    counts = {}

    def count(module, given):
        levels = float(given[0].abs().max())
        whole = torch.equal(given[0], given[0].round()) and levels <= student.config.spikes["levels"]
        counts[module] = (whole * module.in_features * module.out_features, module.in_features * module.out_features)

    hooks = [part.register_forward_pre_hook(count) for part in student.modules() if isinstance(part, nn.Linear)]
    with torch.no_grad():
        student(ids)
    for hook in hooks:
        hook.remove()
    head = counts.pop(student.lm_head)
    fed, macs = (sum(column) for column in zip(*counts.values(), strict=True))
    return fed / macs, (fed + head[0]) / (macs + head[1])


@pytest.mark.parametrize("shape", [{}, {"mlp_bias": True}, GOOSE, {**GOOSE, "attention_bias": True, "gate_rank": 0}])
@pytest.mark.parametrize(
    "sites", ["recorded", "all", "all+head", [], ["ffn_mid"], ["mixer_out", "head_in"], ["k", "ffn_in"]]
)
def test_the_share_is_what_a_counter_of_real_inputs_finds(make_student, ids, shape, sites):
    student = make_student(**shape, spikes={"sites": sites, "levels": 2, "amplitude": "channel", "scale": "token"})
    fold_amplitudes(student)
    blocks, whole = counted_shares(student, ids)
    assert spike_fed_mac_share(student.config, with_head=False) == pytest.approx(blocks, rel=1e-12)
    assert spike_fed_mac_share(student.config) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("amplitude", ["none", "scalar", "channel"])
@pytest.mark.parametrize("surrogate", ["clipped_ste", "recorded_ste"])
def test_with_all_sites_every_linear_layer_of_a_goose_block_reads_integers(make_student, ids, amplitude, surrogate):
    spikes = {"sites": "all", "levels": 4, "amplitude": amplitude, "scale": "token", "surrogate": {"kind": surrogate}}
    student = make_student(**GOOSE, spikes=spikes)
    fold_amplitudes(student)
    blocks, whole = counted_shares(student, ids)
    assert blocks >= 0.99
    assert whole < blocks
