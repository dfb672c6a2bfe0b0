import pytest
import torch

from asnn_goose.config_student import GooseStudent, Spikes
from asnn_goose.data.tokens import tokenize_text
from asnn_goose.evaluation.mac_counter import count_macs
from asnn_goose.models import joint_linear
from asnn_goose.models.build import build_student
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.folding import encoded_inputs, folded
from asnn_goose.models.plan import macs_per_token, spike_fed_mac_share
from asnn_goose.models.student import GooseForCausalLM

TINY_IDS = torch.arange(20).view(2, 10) % 11
# r, k, v, rates and the gate's first factor; its second; output; up and gate; down; head. Nothing multiplies k and v.
COLUMNS = {"mixer_in": 8 + 4 + 4 + 3 + 4, "gate_mid": 8, "mixer_out": 8, "ffn_in": 24, "ffn_mid": 8, "head_in": 11}


@pytest.fixture(scope="module")
def text_ids(teacher, real_text):
    return torch.from_numpy(tokenize_text(real_text[:4000], teacher.tokenizer)[:192].astype("int64")).view(3, 64)


@pytest.fixture
def made(teacher):
    def make(**spikes):
        return build_student(GooseStudent(mixer="goose"), Spikes(**spikes), teacher, 0)

    return make


def tiny_student(sites):
    shape = {"mixer": "goose", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "gate_rank": 4}
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 12, "mlp": "swiglu"}
    spikes = {"sites": sites, "levels": 3, "scale": "token"}
    torch.manual_seed(0)
    return GooseForCausalLM(GooseConfig(**shape, **sizes, positions="none", spikes=spikes)).double().eval()


@pytest.fixture
def tiny():
    return tiny_student("all+head")


@pytest.mark.parametrize(("sites", "with_head"), [("recorded", 0.0), ("all", None), ("all+head", 1.0), ((), 0.0)])
def test_the_measured_share_is_the_planned_one(made, text_ids, sites, with_head):
    student = made(sites=sites, scale="token", levels=2)
    counted = count_macs(student, text_ids)
    planned = [spike_fed_mac_share(student.config, head) for head in (False, True)]
    found = [counted.spike_fed_share(head) for head in (False, True)]
    assert found == pytest.approx(planned, abs=1e-12)
    assert with_head is None or found[1] == with_head
    assert counted.macs_per_token == macs_per_token(student.config)


def test_with_all_sites_spikes_feed_every_layer_but_the_head(made, text_ids):
    counted = count_macs(made(sites="all"), text_ids)
    assert counted.spike_fed_share(with_head=False) >= 0.99
    assert [layer.name for layer in counted.layers if layer.kind != "spikes"] == ["lm_head"]


def test_of_the_dense_twin_nothing_is_fed_by_spikes(made, text_ids):
    counted = count_macs(made(sites="all+head", encoder="dense"), text_ids)
    assert (counted.spike_fed_share(), counted.additions_per_token, counted.density) == (0.0, 0.0, None)
    assert {layer.kind for layer in counted.layers} == {"dense"}


@pytest.mark.parametrize("sites", [("ffn_mid",), ("mixer_in", "head_in")])
def test_amplitudes_of_channels_make_a_site_dense_until_they_are_folded(made, text_ids, sites):
    student = made(sites=sites, amplitude="channel", scale="token")
    with torch.no_grad():
        for encoder, _ in encoded_inputs(student):
            encoder.amplitude.uniform_(0.5, 0.9)
    assert count_macs(student, text_ids).spike_fed_share() == 0.0
    planned = spike_fed_mac_share(student.config)
    assert planned > 0.05
    assert count_macs(folded(student), text_ids).spike_fed_share() == pytest.approx(planned, abs=1e-12)


@torch.no_grad()
def test_additions_are_those_of_the_spikes_that_left_the_model(tiny):
    spikes = tiny.model(input_ids=TINY_IDS, output_spikes=True).spikes
    seen = [(COLUMNS.get(site, 0), values) for sites in spikes for site, values in sites.items()]
    counted = count_macs(tiny, TINY_IDS)
    assert counted.additions_per_token * 20 == sum(columns * int(values.abs().sum()) for columns, values in seen)
    nonzero = sum(columns * int((values != 0).sum()) for columns, values in seen)
    assert sum(layer.nonzero_macs for layer in counted.layers) == nonzero
    macs = sum(columns * values.numel() for columns, values in seen)
    assert counted.density == pytest.approx(nonzero / macs)
    assert counted.macs_per_token * 20 == macs


def test_many_rows_count_as_the_sum_of_few(tiny):
    rows = TINY_IDS.repeat(60, 1)
    assert len(rows) * 10 > 2 * 512
    many, few = count_macs(tiny, rows), count_macs(tiny, TINY_IDS)
    assert [layer.events for layer in many.layers] == [60 * layer.events for layer in few.layers]
    assert (many.tokens, many.additions_per_token) == (1200, few.additions_per_token)


@pytest.mark.parametrize("sites", ["all+head", []])
def test_a_layer_that_is_given_zeros_alone_is_silent_and_fed_by_nothing(sites):
    student = tiny_student(sites)
    torch.nn.init.zeros_(student.model.layers[1].mixer.head_norm)
    counted = count_macs(student, TINY_IDS)
    assert counted.silent_layers == ("model.layers.1.mixer.output",)
    lost = 8 * 8 / counted.macs_per_token
    assert counted.spike_fed_share() == pytest.approx(spike_fed_mac_share(student.config) - lost if sites else 0.0)


def test_integers_beyond_the_students_own_levels_are_no_spikes(tiny):
    tiny.config.spikes["levels"] = 1
    kinds = {layer.name: layer.kind for layer in count_macs(tiny, TINY_IDS).layers}
    assert kinds["model.layers.0.feed_forward.down"] == "dense"


def test_layers_that_a_gpu_would_join_are_seen_one_by_one(tiny, monkeypatch):
    alone = count_macs(tiny, TINY_IDS)
    monkeypatch.setitem(joint_linear.LEAST_TOKENS, "cpu", 1)
    assert count_macs(tiny, TINY_IDS) == alone


def test_a_layer_that_no_pass_calls_is_refused(tiny):
    tiny.spare = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="did not call spare:"):
        count_macs(tiny, TINY_IDS)


def test_counting_leaves_neither_hooks_nor_another_mode(tiny):
    count_macs(tiny.train(), TINY_IDS)
    assert tiny.training
    assert not any(module._forward_pre_hooks for module in tiny.modules())
