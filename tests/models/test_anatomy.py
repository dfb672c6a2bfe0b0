import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from asnn_goose.errors import TeacherError
from asnn_goose.models.anatomy import learned_positions, teacher_anatomy

SHAPE = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 61, "max_position_embeddings": 32,
}  # fmt: skip


def test_the_pocket_teacher_is_read_whole(teacher):
    parts = teacher_anatomy(teacher.model, "pocket")
    assert (parts.width, parts.feedforward_width, parts.norm, parts.mlp, parts.mlp_bias) == (
        256, 1024, "layernorm", "gelu", True,
    )  # fmt: skip
    assert (parts.positions, parts.max_positions, parts.tie_head, len(parts.blocks)) == ("learned", 512, True, 4)
    assert (parts.heads.heads, parts.heads.key_value_heads, parts.heads.head_width) == (4, 4, 64)
    assert parts.heads.rotary_frequencies is None


def test_transposed_weights_come_the_usual_way_round(teacher):
    block = teacher_anatomy(teacher.model, "pocket").blocks[0]
    joined = teacher.model.transformer.h[0].attn.c_attn.weight
    assert torch.equal(block.parts.key.weight, joined[:, 256:512].T)
    assert block.parts.value.bias.shape == (256,)


def test_grouped_heads_and_rotary_positions_are_told():
    heads = teacher_anatomy(LlamaForCausalLM(LlamaConfig(**SHAPE)), "llama").heads
    assert (heads.heads, heads.key_value_heads, heads.head_width) == (4, 2, 6)
    assert heads.rotary_frequencies == pytest.approx([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)])


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_tied_where_it_is_the_embedding_whatever_the_configuration_says(tied):
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied))
    model.config.tie_word_embeddings = not tied
    assert teacher_anatomy(model, "llama").tie_head is tied


@pytest.mark.parametrize(
    ("model", "positions"),
    [
        (GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=20, n_embd=8, n_layer=1, n_head=2)), 20),
        (
            OPTForCausalLM(
                OPTConfig(
                    vocab_size=9, hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=2,
                    max_position_embeddings=20, word_embed_proj_dim=8,
                )
            ),
            20,
        ),
        (LlamaForCausalLM(LlamaConfig(**SHAPE)), None),
        (BloomForCausalLM(BloomConfig(vocab_size=9, hidden_size=8, n_layer=1, n_head=2)), None),
    ],
    ids=["gpt2", "opt", "llama", "bloom"],
)  # fmt: skip
def test_learned_positions_are_told_from_computed_ones(model, positions):
    assert learned_positions(model) == positions


@pytest.mark.parametrize(
    ("model", "described"),
    [
        (
            GPTNeoXForCausalLM(
                GPTNeoXConfig(
                    vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
                )
            ),
            "gpt_neox model",
        ),
        (
            GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, activation_function="relu")),
            "gpt2 model with activation relu",
        ),
        (
            LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_hidden_layers": 1}, hidden_act="gelu")),
            "llama model with activation gelu",
        ),
    ],
    ids=["gpt-neox", "gpt2 with relu", "llama with gelu"],
)
def test_other_architectures_are_refused_with_those_that_are_supported(model, described):
    with pytest.raises(TeacherError, match=rf"other is a {described}: .*gpt2, llama, mistral, qwen2, qwen3") as caught:
        teacher_anatomy(model, "other")
    assert "student.mixer=wkv student.initialization=random" in str(caught.value)
