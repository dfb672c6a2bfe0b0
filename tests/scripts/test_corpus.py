import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from asnn_goose.errors import DataError
from asnn_goose.inference.sampling import Nucleus
from asnn_goose.models.loading import LoadedModel
from pocket.corpus import SamplingPlan, clean_corpus, sample_texts


@pytest.fixture(scope="module")
def noise():
    """A Llama with random weights over single bytes: what it writes is no prose."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={sign: place for place, sign in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LoadedModel(LlamaForCausalLM(config).eval(), fast, "noise", "")


def plan(**choices):
    common = {"prompts": 40, "rows": 8, "new_tokens": 12, "minutes": 1.0, "seed": 0, "nucleus": Nucleus()}
    return SamplingPlan(**common | choices)


def test_a_model_that_writes_no_prose_gives_no_documents(noise, tmp_path):
    sample_texts(noise, plan(prompt_tokens=400, target_tokens=8 * 12 + 1), tmp_path / "texts.jsonl")
    with pytest.raises(DataError, match="none of 16 texts became a document"):
        clean_corpus(tmp_path / "texts.jsonl", tmp_path / "documents.jsonl")


def test_prompts_that_are_all_too_long_are_refused(noise, tmp_path):
    with pytest.raises(DataError, match="no prompt has 20 tokens or fewer"):
        sample_texts(noise, plan(prompt_tokens=20, target_tokens=1), tmp_path / "texts.jsonl")
