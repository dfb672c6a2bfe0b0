import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from asnn_goose.models.anatomy import body_blocks, teacher_anatomy
from asnn_goose.models.sublayers import residual_stream, sublayer_records


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


def attention(model, blocks, ids):
    return [record.attention for record in sublayer_records(model, blocks, ids, "mixers")]


def test_output_is_the_projection_of_what_the_heads_found(model):
    blocks = teacher_anatomy(model, "model").blocks
    ids = torch.arange(10).reshape(2, 5)
    for block, record in zip(blocks, attention(model, blocks, ids), strict=True):
        output = functional.linear(record.found, block.parts.output.weight, block.parts.output.bias)
        torch.testing.assert_close(record.output, output)


def test_what_attention_was_given_makes_it_find_the_same_again(model):
    blocks = teacher_anatomy(model, "model").blocks
    record = attention(model, blocks, torch.arange(10).reshape(2, 5))[0]
    block = blocks[0]
    value = functional.linear(block.mixer_norm(record.stream), block.parts.value.weight, block.parts.value.bias)
    # The first token can only look at itself, so its heads find its own value.
    heads = record.found[:, 0].shape[-1] // value.shape[-1]
    width = block.attention.head_dim
    expected = value[:, 0].unflatten(-1, (-1, width)).repeat_interleave(heads, dim=1).flatten(1)
    torch.testing.assert_close(record.found[:, 0], expected)


def test_a_feed_forward_part_given_its_stream_gives_its_output_again(model):
    blocks = teacher_anatomy(model, "model").blocks
    ids = torch.arange(10).reshape(2, 5)
    modules, _ = body_blocks(model.base_model)
    records = sublayer_records(model, blocks, ids, "feed_forward")
    for module, block, record in zip(modules, blocks, records, strict=True):
        assert record.attention is None
        part = record.feed_forward
        torch.testing.assert_close(part.output, module.mlp(block.feed_forward_norm(part.stream)))
    both = sublayer_records(model, blocks, ids, "all")
    assert all(record.attention is not None and record.feed_forward is not None for record in both)


def hooks(model):
    """All there are; transformers leaves its own once it has been asked for hidden states."""
    return [hook for part in model.modules() for hook in (*part._forward_hooks, *part._forward_pre_hooks)]


def test_only_the_blocks_asked_for_are_recorded_and_no_hook_stays(model):
    blocks, before = teacher_anatomy(model, "model").blocks, hooks(model)
    assert len(attention(model, blocks[1:], torch.arange(4).reshape(1, 4))) == len(blocks) - 1
    assert hooks(model) == before


@pytest.mark.parametrize("numbers", [(1, 2), (2,), (0, 2), (2, 0, 1), ()])
def test_the_stream_is_recorded_where_it_is_asked_for(model, numbers):
    anatomy = teacher_anatomy(model, "model")
    ids = torch.arange(10).reshape(2, 5)
    # transformers lists the embeddings' output first, and the last entry after the final norm.
    expected = model.base_model(input_ids=ids, output_hidden_states=True).hidden_states
    _, states = residual_stream(model.base_model, numbers, ids)
    assert len(states) == len(numbers)
    assert not any(module._forward_pre_hooks for module in model.modules())
    for number, state in zip(numbers, states, strict=True):
        last = number == len(anatomy.blocks)
        torch.testing.assert_close(anatomy.final_norm(state) if last else state, expected[number])
