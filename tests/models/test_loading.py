import json
import shutil
import time
from pathlib import Path

import gguf
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from asnn_goose.errors import HubUnreachableError, TeacherError
from asnn_goose.models.loading import load_causal_lm

LIMIT_SECONDS = 8.0
TEXT = "def add(a, b): return the sum"


@pytest.fixture
def copy(teacher_directory, tmp_path):
    return shutil.copytree(teacher_directory, tmp_path / "copy")


@pytest.fixture
def closed_hub(monkeypatch):
    """A hub that refuses connections at once: port 9 of this machine, where nothing listens."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def refusal(name, **options):
    """The one line that loading raises, within seconds."""
    start = time.monotonic()
    with pytest.raises((TeacherError, HubUnreachableError)) as caught:
        load_causal_lm(str(name), **options)
    assert time.monotonic() - start < LIMIT_SECONDS
    assert "\n" not in str(caught.value)
    return f"{caught.type.__name__}: {caught.value}"


def tiny_llama():
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=4096, num_attention_heads=4, num_key_value_heads=2, **shape)
        return LlamaForCausalLM(config).eval()


def interleaved(weight, heads):
    """Rows of a rotary projection in the order that GGUF keeps them."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write_gguf(model, tokenizer_directory: Path, target: Path):
    """Write a Llama and a byte-level tokenizer as llama.cpp's converter does."""
    config, names = model.config, gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    tokenizer = json.loads((tokenizer_directory / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokenizer["vocab"], key=tokenizer["vocab"].get))
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        role = next((role for role in heads if role in name), None)
        stored = interleaved(tensor, heads[role]) if role else tensor
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), stored.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_file(teacher_directory, tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny_llama(), teacher_directory, file)
    return file


@pytest.mark.parametrize("inside", ["", "model"])
def test_a_directory_and_a_run_folder_load(teacher_directory, tmp_path, inside):
    shutil.copytree(teacher_directory, tmp_path / "run" / inside, dirs_exist_ok=True)
    loaded = load_causal_lm(str(tmp_path / "run"))
    original = AutoModelForCausalLM.from_pretrained(teacher_directory).state_dict()
    assert all(torch.equal(weight, original[name]) for name, weight in loaded.model.state_dict().items())
    assert loaded.name == str(tmp_path / "run")


def test_a_home_directory_is_understood(teacher_directory, monkeypatch):
    monkeypatch.setenv("HOME", str(teacher_directory.parent))
    assert load_causal_lm(f"~/{teacher_directory.name}").model.config.n_layer == 4


def test_a_loaded_model_is_frozen_and_in_evaluation_mode(teacher_directory):
    model = load_causal_lm(str(teacher_directory)).model
    assert not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())


def test_weights_take_the_number_type_asked_for(teacher_directory):
    assert load_causal_lm(str(teacher_directory), torch.bfloat16).model.dtype == torch.bfloat16


def test_the_same_tokenizer_has_the_same_hash_and_another_a_different_one(teacher_directory, copy):
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    first, second = (load_causal_lm(str(teacher_directory)).vocabulary_hash for _ in range(2))
    assert first == second != load_causal_lm(str(copy)).vocabulary_hash


def test_a_gguf_file_is_the_model_it_was_written_from(gguf_file, teacher_directory):
    loaded = load_causal_lm(str(gguf_file))
    ids = AutoTokenizer.from_pretrained(teacher_directory)(TEXT, return_tensors="pt")["input_ids"]
    assert loaded.tokenizer(TEXT)["input_ids"] == ids[0].tolist()
    assert loaded.tokenizer.decode(ids[0]) == TEXT
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, tiny_llama()(ids).logits)


def test_a_gguf_file_with_another_sha256_is_refused(gguf_file):
    assert "expected 000" in refusal(gguf_file, sha256="0" * 64)


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "~/no-such-model", "a/b/c", "../model.gguf", "x.gguf"])
def test_a_path_that_leads_nowhere_is_refused_without_asking_the_hub(name):
    assert refusal(name).startswith(("TeacherError: no model at", "TeacherError: no file"))


def test_a_file_that_is_no_gguf_file_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"0")
    assert "no model at" in refusal(tmp_path / "model.bin")


def test_a_directory_without_a_configuration_is_refused(tmp_path):
    assert "holds no config.json" in refusal(tmp_path)


@pytest.mark.parametrize("bytes_kept", [0, 700, 3000, 60_000])
def test_a_damaged_gguf_file_is_refused(gguf_file, tmp_path, bytes_kept):
    (tmp_path / "cut.gguf").write_bytes(gguf_file.read_bytes()[:bytes_kept])
    assert refusal(tmp_path / "cut.gguf").startswith("TeacherError: cannot load")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_of_a_directory_is_refused(copy, file):
    (copy / file).write_bytes((copy / file).read_bytes()[:100])
    assert refusal(copy).startswith(f"TeacherError: cannot load {copy}")


@pytest.mark.parametrize("model_type", ["no-such-model", "vit"])
def test_a_model_that_is_no_known_language_model_is_refused(copy, model_type):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    assert refusal(copy).startswith("TeacherError: cannot load")


def test_missing_weights_are_refused_rather_than_drawn_at_random(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "1 of its weights are missing" in refusal(copy)


def test_weights_of_another_shape_are_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"n_positions": 128}))
    assert "transformer.wpe.weight first" in refusal(copy)


def save_with(folder, tied, **changes):
    """A Llama with the tokenizer that is in the folder, its head tied or its own; then its configuration changed."""
    model = tiny_llama()
    model.config.tie_word_embeddings = tied
    if tied:
        model.tie_weights()
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_head_of_its_own_where_the_configuration_says_tied_is_refused(copy):
    save_with(copy, tied=False, tie_word_embeddings=True)
    said = refusal(copy)
    assert "says tie_word_embeddings=true, but its weights hold another lm_head.weight" in said
    assert "set tie_word_embeddings to false" in said


def test_a_missing_head_where_the_configuration_says_untied_is_refused(copy):
    save_with(copy, tied=True, tie_word_embeddings=False)
    said = refusal(copy)
    assert "says tie_word_embeddings=false, but its weights hold no lm_head.weight" in said
    assert "set tie_word_embeddings to true" in said


def test_a_tied_head_that_is_stored_twice_is_tied(copy):
    save_with(copy, tied=True)
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    model = load_causal_lm(str(copy)).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weights_without_a_place_are_left_out_with_a_warning(copy, caplog):
    save_with(copy, tied=True, num_hidden_layers=1)
    load_causal_lm(str(copy))
    assert "9 of its weights have no place" in caplog.text
    assert "model.layers.1.input_layernorm.weight first" in caplog.text


def test_a_tokenizer_with_tokens_that_the_embedding_has_not_is_refused(copy):
    described = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(described | {"eos_token": "<|new|>"}))
    assert "has '<|new|>' as token 4096, but the model's embedding ends at 4095" in refusal(copy)


def test_a_directory_without_a_tokenizer_is_refused(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer" in refusal(copy)


@pytest.mark.usefixtures("closed_hub")
@pytest.mark.parametrize("name", ["gpt2", "no-such-owner/no-such-model"])
def test_a_hub_that_does_not_answer_names_the_offline_ways(name, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    said = refusal(name)
    assert said.startswith("HubUnreachableError")
    assert "teacher.name=DIRECTORY" in said
    assert "teacher.name=smollm2" in said
