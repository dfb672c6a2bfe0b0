import pytest
from pydantic import TypeAdapter, ValidationError

from asnn_goose.config_student import ALL_SITES, GooseStudent, LifMembrane, Spikes, Student, WkvStudent, spike_sites


@pytest.mark.parametrize(("mixer", "choice"), [("wkv", WkvStudent), ("goose", GooseStudent)])
def test_students_are_told_apart_by_their_mixer(mixer, choice):
    assert type(TypeAdapter(Student).validate_python({"mixer": mixer})) is choice


@pytest.mark.parametrize("kept", ["half", 0, -1, [1.5]])
def test_layers_are_kept_by_word_number_or_list(kept):
    with pytest.raises(ValidationError):
        GooseStudent.model_validate_json(f'{{"mixer": "goose", "keep_layers": {str(kept)!r}}}'.replace("'", '"'))


def test_a_student_without_sites_is_the_dense_twin():
    assert Spikes(sites=()).sites == ()


@pytest.mark.parametrize(
    ("chosen", "mixer", "gate_rank", "expected"),
    [
        ("recorded", "goose", 8, ("k", "v")),
        ("all", "goose", 8, ALL_SITES),
        ("all+head", "goose", 8, (*ALL_SITES, "head_in")),
        ("all", "goose", 0, ("k", "v", "mixer_in", "mixer_out", "ffn_in", "ffn_mid")),
        ("all+head", "wkv", 0, ("k", "v", "mixer_out", "ffn_in", "ffn_mid", "head_in")),
        (["ffn_mid", "k"], "wkv", 0, ("ffn_mid", "k")),
    ],
)
def test_a_preset_is_the_sites_that_a_student_has(chosen, mixer, gate_rank, expected):
    assert spike_sites(chosen, mixer, gate_rank) == expected


@pytest.mark.parametrize(
    ("chosen", "mixer", "gate_rank", "told"),
    [
        (["mixer_in"], "wkv", 0, "names 'mixer_in', but a wkv student knows the sites k, v, mixer_out, ffn_in"),
        (["k", "gate_mid"], "goose", 0, "names 'gate_mid', but a goose student without gate knows the sites k, v"),
        ("most", "goose", 8, "is 'most': expected a list, or one of recorded, all, all"),
    ],
)
def test_a_site_that_a_student_has_not_is_refused_in_one_line(chosen, mixer, gate_rank, told):
    with pytest.raises(ValueError, match=told) as caught:
        spike_sites(chosen, mixer, gate_rank)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sites", ["all", ("k", "ffn_mid")])
def test_amplitudes_by_sign_are_for_key_and_value_alone(sites):
    with pytest.raises(ValidationError, match=r"spikes\.amplitude=asymmetric is for the sites k and v"):
        Spikes(sites=sites, amplitude="asymmetric")
    assert Spikes(amplitude="asymmetric").amplitude == "asymmetric"


@pytest.mark.parametrize("sites", ["all", ("k", "ffn_mid")])
def test_membranes_are_for_encoded_sites(sites):
    assert Spikes(sites=sites, membrane=LifMembrane(sites=("ffn_mid",))).membrane.beta == 0.9
    with pytest.raises(ValidationError, match=r"spikes\.membrane\.sites names 'head_in', but what is encoded is k, "):
        Spikes(sites=sites, membrane=LifMembrane(sites=("head_in",)))


def test_a_membrane_needs_a_surrogate_that_sees_it():
    with pytest.raises(ValidationError, match=r"recorded_ste passes gradients by the membrane: give clipped_ste"):
        Spikes(membrane=LifMembrane(), surrogate={"kind": "recorded_ste"})


@pytest.mark.parametrize("choice", [{"scale": "none"}, {"scale": "token", "calibrate": False}])
def test_channels_move_only_with_thresholds_that_are_calibrated(choice):
    with pytest.raises(ValidationError, match=r"give spikes\.calibrate=true and spikes\.scale=token"):
        Spikes(migrate=True, **choice)
    assert Spikes(migrate=True, scale="token").migrate
