import pytest
import torch
from transformers import AutoModelForCausalLM

from asnn_goose.models.folding import encoded_inputs, fold_amplitudes, folded
from asnn_goose.models.plan import spike_fed_matmuls

# Float64 rounding, some hundred operations deep, on logits of order 10; a spike that flips would show as 1e-2 or more.
ROUNDING = {"rtol": 0.0, "atol": 1e-11}
GOOSE = {"mixer": "goose", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
FORMS = {
    "goose": {**GOOSE, "mlp": "swiglu", "norm": "rmsnorm", "positions": "none", "tie_word_embeddings": False},
    "goose-biases-tied": {**GOOSE, "mlp": "gelu", "mlp_bias": True, "attention_bias": True},
    "wkv": {"mlp": "silu", "mlp_bias": True},
}
SPIKES = {"levels": 2, "amplitude": "channel", "scale": "token"}


GROUPS = {"amplitude": "group", "group_channels": 5, "encoder": "binary"}


def made(make_student, form, **spikes):
    return make_student(**FORMS[form], spikes={"sites": "all+head", **SPIKES, **spikes})


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spikes", [{}, GROUPS], ids=["channels", "groups"])
def test_a_folded_student_is_the_student(make_student, form, spikes, ids, tmp_path):
    student = made(make_student, form, **spikes)
    before = student(ids)
    fold_amplitudes(student)
    after = student(ids)
    torch.testing.assert_close(after.logits, before.logits, **ROUNDING)
    student.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, after.logits)


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_a_student_saved_before_it_is_folded_is_the_one_folded(make_student, form, ids, tmp_path):
    student = made(make_student, form)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for one in (student, loaded):
        fold_amplitudes(one)
    assert torch.equal(loaded(ids).logits, student(ids).logits)


@torch.no_grad()
def test_folding_leaves_amplitudes_of_one_before_matrices_and_those_of_key_and_value(make_student):
    student = made(make_student, "goose")
    keys = [mixer.encoders["k"].amplitude.clone() for mixer in student.model.mixers()]
    fold_amplitudes(student)
    assert all((encoder.amplitude == 1).all() for encoder, _ in encoded_inputs(student))
    for mixer, before in zip(student.model.mixers(), keys, strict=True):
        assert torch.equal(mixer.encoders["k"].amplitude, before)


@torch.no_grad()
@pytest.mark.parametrize("amplitude", ["none", "scalar"])
def test_without_channel_amplitudes_nothing_is_touched(make_student, amplitude):
    student = made(make_student, "goose-biases-tied", amplitude=amplitude)
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    fold_amplitudes(student)
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())
    assert student.lm_head.weight is student.model.embed_tokens.weight


@torch.no_grad()
def test_a_tied_head_is_folded_without_the_embedding(make_student, ids):
    student = made(make_student, "wkv")
    embedding = student.model.embed_tokens.weight.clone()
    fold_amplitudes(student)
    assert torch.equal(student.model.embed_tokens.weight, embedding)
    assert not student.config.tie_word_embeddings


@torch.no_grad()
def test_a_folded_copy_computes_the_same_and_leaves_the_student_alone(make_student, ids):
    student = made(make_student, "wkv")
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    torch.testing.assert_close(folded(student)(ids).logits, student(ids).logits, **ROUNDING)
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())
    assert student.lm_head.weight is student.model.embed_tokens.weight
    assert all((encoder.amplitude == 1).all() for encoder, _ in encoded_inputs(folded(student)))


@pytest.mark.parametrize("spikes", [{"amplitude": "scalar"}, {"sites": "recorded"}, {"sites": []}])
def test_a_student_without_anything_to_move_is_not_copied(make_student, spikes):
    student = made(make_student, "goose", **spikes)
    assert folded(student) is student


def test_every_encoder_is_named_with_the_layers_that_read_it(make_student):
    student = made(make_student, "goose")
    found = list(encoded_inputs(student))
    assert [len(readers) for _, readers in found] == 3 * [5, 1, 1, 2, 1] + [1]
    assert sum(len(readers) for _, readers in found) == 3 * len(spike_fed_matmuls(student.config)) + 1
