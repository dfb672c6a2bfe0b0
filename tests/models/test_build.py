import logging

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from asnn_goose.config_student import GooseStudent, LifMembrane, Spikes, Surrogate, WkvStudent
from asnn_goose.config_threshold import LearnedThreshold
from asnn_goose.errors import ConfigError
from asnn_goose.models.build import build_student, check_windows, fresh_student, student_config
from asnn_goose.models.loading import LoadedModel

SMALL = WkvStudent(width=16, layers=2, max_positions=32, backend="torch")


@pytest.fixture
def config(teacher):
    return student_config(SMALL, Spikes(), teacher)


def test_vocabulary_and_special_tokens_are_the_teachers(config, teacher):
    assert config.vocab_size == 4096 == teacher.model.config.vocab_size
    assert config.vocabulary_hash == teacher.vocabulary_hash
    assert config.teacher_name == teacher.name
    assert config.bos_token_id == config.eos_token_id == teacher.tokenizer.convert_tokens_to_ids("<|endoftext|>")


def test_every_choice_of_the_recipe_reaches_the_model(teacher):
    student = WkvStudent(width=16, layers=2, feedforward_width=20, norm="rmsnorm", mlp="swiglu", tie_head=False)
    spikes = Spikes(
        sites=("v",), levels=3, threshold=LearnedThreshold(alpha=0.7), amplitude="channel", scale="token",
        surrogate=Surrogate(kind="atan", width=0.5, gradient_scale=2.0),
        membrane=LifMembrane(beta=0.7, detach_reset=True),
    )  # fmt: skip
    block = fresh_student(student_config(student, spikes, teacher), seed=0).model.layers[1]
    encoder = block.mixer.encoders["v"]
    assert list(block.mixer.encoders) == ["v"]
    assert (encoder.levels, encoder.scale, encoder.amplitude.shape) == (3, "token", (16,))
    assert encoder.alpha.item() == pytest.approx(0.7)
    assert vars(encoder.surrogate) == {"kind": "atan", "width": 0.5, "gradient_scale": 2.0}
    assert vars(encoder.membrane) == {"beta": 0.7, "detach_reset": True}
    assert block.feed_forward.gate.weight.shape == (20, 16)
    assert type(block.mixer_norm) is torch.nn.RMSNorm


@pytest.mark.parametrize("recurrence", ["exact", "recorded"])
def test_recorded_choices_reach_the_mixer(teacher, recurrence):
    student = SMALL.model_copy(update={"recurrence": recurrence, "decay_init": "recorded", "mix_init": "recorded"})
    mixer = fresh_student(student_config(student, Spikes(), teacher), seed=0).model.layers[0].mixer
    assert mixer.recurrence == recurrence
    assert mixer.decay_logit.unique().tolist() == [-0.5]
    assert mixer.mix_key.unique().tolist() == [1.0]


def test_a_student_without_positions_has_no_position_embedding(teacher):
    student = SMALL.model_copy(update={"positions": "none"})
    assert fresh_student(student_config(student, Spikes(), teacher), seed=0).model.embed_positions is None


def test_the_same_seed_gives_the_same_student(config):
    first, second = (fresh_student(config, seed=7).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_another_student(config):
    first, second = (fresh_student(config, seed=seed).state_dict() for seed in (7, 8))
    assert not torch.equal(first["model.embed_tokens.weight"], second["model.embed_tokens.weight"])


def test_the_global_generator_is_left_as_it_was(config):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fresh_student(config, seed=7)
    assert torch.equal(torch.rand(4), expected)


def test_the_share_of_spike_fed_work_is_logged(config, caplog):
    with caplog.at_level(logging.INFO, logger="asnn_goose"):
        student = fresh_student(config, seed=0)
    assert f"{student.num_parameters():,} parameters, 0% of its multiply-accumulates" in caplog.text


def test_windows_up_to_the_learned_positions_pass(teacher, caplog):
    assert check_windows(teacher, {"training.window": 512, "evaluation.window": 2}) is None
    assert not caplog.records


def test_windows_longer_than_the_learned_positions_are_refused_by_name(teacher):
    with pytest.raises(ConfigError) as caught:
        check_windows(teacher, {"training.window": 513, "evaluation.window": 512, "--window": 600})
    assert str(caught.value).startswith("training.window=513 and --window=600: longer than the 512 learned positions")
    assert "give 512 or fewer" in str(caught.value)


def test_windows_longer_than_computed_positions_are_warned_of(teacher, caplog):
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=9, max_position_embeddings=32, **shape))
    loaded = LoadedModel(model, teacher.tokenizer, "some-llama", teacher.vocabulary_hash)
    check_windows(loaded, {"training.window": 32})
    assert not caplog.records
    check_windows(loaded, {"training.window": 33})
    assert caplog.messages == [
        "training.window=33: some-llama is made for 32 tokens and may predict worse beyond; give 32 or fewer"
    ]


def test_what_encodes_and_what_shares_an_amplitude_reach_the_encoder(teacher):
    spikes = Spikes(sites="all", encoder="binary", amplitude="group", group_channels=5, scale="token")
    block = fresh_student(student_config(SMALL, spikes, teacher), seed=0).model.layers[0]
    encoder = block.feed_forward.encoders["ffn_in"]
    assert (encoder.kind, encoder.amplitude.shape, encoder.stores_alpha) == ("binary", (4,), True)
    assert block.mixer.encoders["k"].stores_alpha
    apart = spikes.model_copy(update={"calibrate_recurrence": False})
    block = fresh_student(student_config(SMALL, apart, teacher), seed=0).model.layers[0]
    assert not block.mixer.encoders["k"].stores_alpha
    assert block.feed_forward.encoders["ffn_in"].stores_alpha
    uncalibrated = spikes.model_copy(update={"calibrate": False})
    block = fresh_student(student_config(SMALL, uncalibrated, teacher), seed=0).model.layers[0]
    assert not block.feed_forward.encoders["ffn_in"].stores_alpha


@pytest.mark.parametrize("sites", ["all", "all+head"])
def test_a_head_into_which_channels_may_move_is_built_untied(teacher, sites):
    spikes = Spikes(sites=sites, scale="token", migrate=True)
    student = build_student(GooseStudent(mixer="goose"), spikes, teacher, 0)
    embedding, head = student.model.embed_tokens.weight, student.lm_head.weight
    assert torch.equal(embedding, head)
    assert (embedding is head) == student.config.tie_word_embeddings == (sites == "all")
