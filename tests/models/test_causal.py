import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM, MistralConfig, MistralForCausalLM

from asnn_goose.models.causal import NAME, causal_by_itself

SHAPE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def ids():
    return torch.arange(24).reshape(2, 12)


def hidden(model, ids):
    with torch.no_grad():
        return model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def test_full_rows_are_attended_to_as_by_the_model_itself(teacher, ids):
    expected = hidden(teacher.model, ids)
    with causal_by_itself(teacher.model.base_model, ids.shape[1]):
        assert teacher.model.config._attn_implementation == NAME
        found = hidden(teacher.model, ids)
    assert torch.equal(found, expected)
    assert teacher.model.config._attn_implementation == "sdpa"


def test_a_model_that_does_not_reach_back_over_a_whole_row_keeps_its_mask(ids):
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(vocab_size=50, num_key_value_heads=1, sliding_window=4, **SHAPE)).eval()
    expected = hidden(model, ids)
    with causal_by_itself(model.base_model, ids.shape[1]):
        assert torch.equal(hidden(model, ids), expected)
    with causal_by_itself(model.base_model, 4):
        # The mask matters: without it the last tokens would see the first ones.
        assert not torch.allclose(hidden(model, ids), expected)


def test_an_error_leaves_the_model_as_it_was(teacher):
    with pytest.raises(KeyError), causal_by_itself(teacher.model.base_model, 8):
        raise KeyError
    assert teacher.model.config._attn_implementation == "sdpa"


def test_a_model_that_asks_for_its_attention_by_name_is_left_alone(ids):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = FalconForCausalLM(FalconConfig(vocab_size=50, **shape)).eval()
    expected = hidden(model, ids)
    with causal_by_itself(model.base_model, ids.shape[1]):
        assert torch.equal(hidden(model, ids), expected)
