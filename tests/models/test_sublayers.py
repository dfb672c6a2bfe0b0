from copy import deepcopy

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from asnn_goose.models.anatomy import teacher_anatomy
from asnn_goose.models.sublayers import attention_records, residual_stream


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(params=["gpt2", "llama"])
def model(request, teacher, llama):
    return teacher.model if request.param == "gpt2" else llama


def own_records(model, blocks, ids):
    """Records as attention itself is given them."""
    return attention_records(model, blocks, [deepcopy(block.mixer_norm) for block in blocks], ids)


def test_output_is_the_projection_of_what_the_heads_found(model):
    blocks = teacher_anatomy(model, "model").blocks
    ids = torch.arange(10).reshape(2, 5)
    for block, record in zip(blocks, own_records(model, blocks, ids), strict=True):
        output = functional.linear(record.found, block.parts.output.weight, block.parts.output.bias)
        torch.testing.assert_close(record.output, output)


def test_what_attention_was_given_makes_it_find_the_same_again(model):
    blocks = teacher_anatomy(model, "model").blocks
    record = own_records(model, blocks, torch.arange(10).reshape(2, 5))[0]
    block = blocks[0]
    value = functional.linear(record.given, block.parts.value.weight, block.parts.value.bias)
    # The first token can only look at itself, so its heads find its own value.
    heads = record.found[:, 0].shape[-1] // value.shape[-1]
    width = block.attention.head_dim
    expected = value[:, 0].unflatten(-1, (-1, width)).repeat_interleave(heads, dim=1).flatten(1)
    torch.testing.assert_close(record.found[:, 0], expected)


def test_only_the_blocks_asked_for_are_recorded_and_no_hook_stays(model):
    blocks = teacher_anatomy(model, "model").blocks
    assert len(own_records(model, blocks[1:], torch.arange(4).reshape(1, 4))) == len(blocks) - 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_mixer_is_given_what_its_own_norm_makes_of_the_stream(model):
    blocks, ids = teacher_anatomy(model, "model").blocks, torch.arange(10).reshape(2, 5)
    norm = torch.nn.RMSNorm(blocks[1].mixer_norm.weight.shape[0], eps=1e-5)
    given = attention_records(model, blocks[1:2], [norm], ids)[0].given
    stream = model.base_model(input_ids=ids, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(given, norm(stream))


@pytest.mark.parametrize("kept", [(0, 1), (0,), (1,)])
def test_the_stream_is_recorded_where_each_kept_block_ends(model, kept):
    anatomy = teacher_anatomy(model, "model")
    ids = torch.arange(10).reshape(2, 5)
    # transformers lists the embeddings' output first, and the last entry after the final norm.
    expected = model.base_model(input_ids=ids, output_hidden_states=True).hidden_states
    final, states = residual_stream(model.base_model, kept, ids)
    assert len(states) == len(kept)
    assert not any(module._forward_pre_hooks for module in model.modules())
    for index, state in zip(kept[1:], states, strict=False):
        assert torch.equal(state, expected[index])
    torch.testing.assert_close(anatomy.final_norm(states[-1]), final)
