from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from asnn_goose.errors import TeacherError, VocabularyMismatchError
from asnn_goose.models.loading import LoadedModel
from asnn_goose.models.teacher import check_same_vocabulary, load_teacher, make_teacher

# Float32 rounding of one dot product over 64 channels, on logits of order 10.
FLOAT32_ROUNDING = {"rtol": 0.0, "atol": 1e-4}


class BiasedGPT2(GPT2LMHeadModel):
    """A GPT-2 whose head has a bias, as GPT-J's has."""

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)
        nn.init.normal_(self.lm_head.bias)


class ScaledGPT2(GPT2LMHeadModel):
    """A GPT-2 whose logits are half of head times hidden state."""

    def forward(self, *arguments, **options):
        output = super().forward(*arguments, **options)
        output.logits = output.logits * 0.5
        return output


def small_gpt2(kind=GPT2LMHeadModel):
    shape = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return kind(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).eval().requires_grad_(False)


def loaded(model, teacher):
    return LoadedModel(model, teacher.tokenizer, "some-model", teacher.vocabulary_hash)


@pytest.fixture
def batch():
    return torch.randint(0, 4096, (2, 30), generator=torch.Generator().manual_seed(0))


def test_a_teacher_is_frozen_in_evaluation_mode_and_repeats_itself(teacher, batch):
    assert not any(module.training for module in teacher.model.modules())
    assert not any(weight.requires_grad for weight in teacher.model.parameters())
    assert torch.equal(teacher.hidden_states(batch), teacher.hidden_states(batch))


def test_head_times_hidden_states_are_the_logits(teacher, batch):
    logits = teacher.hidden_states(batch) @ teacher.head.weight.T
    with torch.no_grad():
        torch.testing.assert_close(logits, teacher.model(batch).logits, **FLOAT32_ROUNDING)


def test_a_head_with_a_bias_keeps_it(teacher):
    biased = make_teacher(loaded(small_gpt2(BiasedGPT2), teacher))
    ids = torch.arange(8).unsqueeze(0)
    logits = biased.hidden_states(ids) @ biased.head.weight.T + biased.head.bias
    with torch.no_grad():
        torch.testing.assert_close(logits, biased.model(ids).logits, **FLOAT32_ROUNDING)


def test_hidden_states_carry_no_gradient(teacher, batch):
    assert teacher.hidden_states(batch).is_inference()


def test_sizes_are_those_of_the_model(teacher):
    assert teacher.vocabulary_size == 4096
    # By hand, width 256: embeddings, four blocks of two norms, attention and feed-forward, one norm; the head is tied.
    block = 2 * 2 * 256 + (256 * 768 + 768) + (256 * 256 + 256) + (256 * 1024 + 1024) + (1024 * 256 + 256)
    assert teacher.parameters == 4096 * 256 + 512 * 256 + 4 * block + 2 * 256


def test_a_logit_scale_is_refused(teacher):
    with pytest.raises(TeacherError, match=r"some-model: its logits differ by 100% .* not supported"):
        make_teacher(loaded(small_gpt2(ScaledGPT2), teacher))


def test_a_soft_cap_on_the_logits_is_refused(teacher):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma2Config(vocab_size=50, num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.05, **shape)
    with pytest.raises(TeacherError, match="soft cap"):
        make_teacher(loaded(Gemma2ForCausalLM(config).eval(), teacher))


def test_a_model_without_a_linear_head_is_refused(teacher):
    model = small_gpt2()
    model.set_output_embeddings(nn.Identity())
    with pytest.raises(TeacherError, match="no linear output head"):
        make_teacher(loaded(model, teacher))


def test_one_vocabulary_is_accepted(teacher):
    assert check_same_vocabulary(teacher, teacher) is None


def test_another_tokenizer_is_refused(teacher):
    with pytest.raises(VocabularyMismatchError, match="a teacher of its own vocabulary"):
        check_same_vocabulary(teacher, replace(teacher, vocabulary_hash="0" * 64))


def test_another_head_size_is_refused(teacher):
    with pytest.raises(VocabularyMismatchError, match=r"4096 entries .* 50 "):
        check_same_vocabulary(teacher, loaded(small_gpt2(), teacher))


@pytest.mark.usefixtures("failing_compiler")
def test_a_teacher_that_does_not_compile_is_the_teacher(teacher_directory, teacher, batch):
    compiled = load_teacher(str(teacher_directory), torch.float32, "cpu", compiled=True)
    assert torch.equal(compiled.hidden_states(batch), teacher.hidden_states(batch))
