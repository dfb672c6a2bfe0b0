import pytest
from transformers import AutoConfig

from asnn_goose.models.configuration import DEFAULT_SPIKES, GooseConfig


def test_inner_width_is_four_widths_unless_given():
    assert GooseConfig(hidden_size=10).intermediate_size == 40
    assert GooseConfig(hidden_size=10, intermediate_size=7).intermediate_size == 7


def test_spike_options_not_given_take_their_defaults():
    spikes = GooseConfig(spikes={"levels": 4, "sites": ["v"]}).spikes
    assert spikes == DEFAULT_SPIKES | {"levels": 4, "sites": ["v"]}


def test_two_configurations_share_no_spike_options():
    changed = GooseConfig()
    changed.spikes["sites"].remove("v")
    changed.spikes["surrogate"]["width"] = 9.0
    assert GooseConfig().spikes["sites"] == ["k", "v"]
    assert GooseConfig().spikes["surrogate"]["width"] == 1.0


def test_a_configuration_saved_is_the_configuration_loaded(tmp_path):
    config = GooseConfig(
        hidden_size=24, mlp="swiglu", positions="none", spikes={"alpha": 0.5}, teacher_name="gpt2", eos_token_id=3
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, GooseConfig)
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}


@pytest.mark.parametrize(
    "choice",
    [
        {"norm": "batchnorm"},
        {"mlp": "relu"},
        {"mixer": "mamba"},
        {"positions": "rotary"},
        {"decay_init": "zeros"},
        {"mix_init": "zeros"},
        {"recurrence": "fast"},
        {"scan_backend": "cuda"},
        {"spikes": {"sites": ["q"]}},
        {"spikes": {"amplitude": "head"}},
        {"spikes": {"encoder": "quaternary"}},
        {"spikes": {"scale": "batch"}},
        {"spikes": {"surrogate": {"kind": "hat"}}},
        {"spikes": {"level": 2}},
        {"spikes": {"membrane": {"kind": "alif"}}},
        {"spikes": {"membrane": {"leak": 0.5}}},
    ],
    ids=str,
)
def test_a_choice_this_version_does_not_know_is_refused(choice):
    with pytest.raises(ValueError, match="knows"):
        GooseConfig(**choice)


def test_the_dense_twin_has_no_sites_whatever_it_names():
    assert GooseConfig(spikes={"sites": "all", "encoder": "dense"}).spikes["sites"] == []


def test_a_membrane_takes_its_defaults_and_is_kept_in_json(tmp_path):
    config = GooseConfig(spikes={"membrane": {"sites": ("v",)}})
    assert config.spikes["membrane"] == {"kind": "lif", "beta": 0.9, "detach_reset": False, "sites": ["v"]}
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).spikes == config.spikes


@pytest.mark.parametrize(
    ("membrane", "others", "told"),
    [
        ({"beta": 1.0}, {}, "beta must be in"),
        ({"sites": ["ffn_in"]}, {}, "names 'ffn_in', but what is encoded is k, v"),
        ({"sites": ["mixer_in"]}, {"sites": "all"}, "names 'mixer_in', but what is encoded is k, v, mixer_out"),
        ({}, {"surrogate": {"kind": "recorded_ste"}}, "recorded_ste passes gradients by the membrane"),
    ],
)
def test_a_membrane_that_no_encoder_can_have_is_refused_in_one_line(membrane, others, told):
    with pytest.raises(ValueError, match=told) as caught:
        GooseConfig(spikes={"membrane": membrane, **others})
    assert "\n" not in str(caught.value)


def test_the_dense_twin_may_name_a_membrane():
    assert GooseConfig(spikes={"encoder": "dense", "membrane": {"sites": ["v"]}}).spikes["sites"] == []


def test_amplitudes_by_sign_are_refused_where_a_matrix_reads_them():
    with pytest.raises(ValueError, match="is for the sites k and v"):
        GooseConfig(spikes={"sites": ["v", "ffn_in"], "amplitude": "asymmetric"})
