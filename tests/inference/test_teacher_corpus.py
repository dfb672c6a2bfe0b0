from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from asnn_goose.config_text import PackedRows, PocketText, TeacherSamples
from asnn_goose.data.tokens import TokenRows, tokenize_documents
from asnn_goose.errors import ConfigError, DataError
from asnn_goose.inference import teacher_corpus as module
from asnn_goose.inference.teacher_corpus import teacher_fingerprint, teacher_samples
from asnn_goose.models.loading import LoadedModel
from asnn_goose.models.teacher import Teacher, make_teacher

OPTIONS = TeacherSamples(prompts=PocketText(), tokens=300, length=16, prompt_tokens=4, rows_per_batch=6)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASNN_GOOSE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def prompt_text(teacher, real_text):
    return np.asarray(tokenize_documents([real_text[:20_000]], teacher.tokenizer, PackedRows()))


@pytest.fixture(scope="module")
def llama(teacher):
    """A Llama with random weights and the pocket teacher's tokenizer."""
    config = LlamaConfig(
        vocab_size=teacher.vocabulary_size, hidden_size=24, intermediate_size=40, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return make_teacher(LoadedModel(model, teacher.tokenizer, "llama", teacher.vocabulary_hash))


@pytest.fixture
def writer(request, teacher, llama) -> Teacher:
    return {"pocket": teacher, "llama": llama}[request.param]


both = pytest.mark.parametrize("writer", ["pocket", "llama"], indirect=True)


@pytest.fixture
def batches(monkeypatch):
    """Counts the batches that are written, and stops behind the number set in `stop_behind`."""
    write = module._write_batch
    counted = {"written": 0, "stop_behind": 10**9}

    def count(*arguments):
        if counted["written"] == counted["stop_behind"]:
            raise KeyboardInterrupt
        counted["written"] += 1
        return write(*arguments)

    monkeypatch.setattr(module, "_write_batch", count)
    return counted


@both
def test_a_text_is_a_prompt_and_what_the_teacher_would_say(writer, prompt_text, quiet_console, empty_cache):
    # Of one candidate the likeliest is drawn, and an untrained or cut-off text of 16 tokens seldom ends.
    options = OPTIONS.model_copy(update={"candidates": 1})
    tokens = teacher_samples(writer, prompt_text, options, 3, quiet_console)
    first = torch.from_numpy(tokens[:16].astype(np.int64))[None]
    with torch.no_grad():
        likeliest = writer.model(first).logits.argmax(dim=-1)[0, 3:-1]
    prompts = TokenRows(prompt_text, 4, 16).take(np.arange(len(prompt_text) // 16))
    assert first[0, :4].tolist() in prompts.tolist()
    assert first[0, 4:].tolist() == likeliest.tolist()
    assert (len(tokens), tokens.dtype) == (300, np.uint16)


@both
def test_interrupted_writing_goes_on_and_ends_with_the_same_tokens(
    writer, prompt_text, quiet_console, tmp_path, monkeypatch, batches
):
    monkeypatch.setenv("ASNN_GOOSE_CACHE", str(tmp_path / "whole"))
    whole = teacher_samples(writer, prompt_text, OPTIONS, 0, quiet_console).tolist()
    needed, batches["written"] = batches["written"], 0
    monkeypatch.setenv("ASNN_GOOSE_CACHE", str(tmp_path / "interrupted"))
    batches["stop_behind"] = 2
    with pytest.raises(KeyboardInterrupt):
        teacher_samples(writer, prompt_text, OPTIONS, 0, quiet_console)
    batches["stop_behind"] = 10**9
    assert teacher_samples(writer, prompt_text, OPTIONS, 0, quiet_console).tolist() == whole
    assert batches["written"] == needed > 2


def test_what_is_written_is_read_again_and_the_batches_are_gone(
    teacher, prompt_text, quiet_console, empty_cache, batches
):
    first = teacher_samples(teacher, prompt_text, OPTIONS, 0, quiet_console)
    written = batches["written"]
    again = teacher_samples(teacher, prompt_text, OPTIONS, 0, quiet_console)
    assert isinstance(again, np.memmap)
    assert (again.tolist(), batches["written"]) == (first.tolist(), written)
    assert [path.name for path in empty_cache.glob("*/*") if path.parent.name == "teacher_samples"] == []


def test_a_damaged_batch_is_written_again(teacher, prompt_text, quiet_console, empty_cache, batches, caplog):
    batches["stop_behind"] = 2
    with pytest.raises(KeyboardInterrupt):
        teacher_samples(teacher, prompt_text, OPTIONS, 0, quiet_console)
    next(empty_cache.glob("teacher_samples/*/000001.npy")).write_bytes(b"x")
    batches["stop_behind"] = 10**9
    tokens = teacher_samples(teacher, prompt_text, OPTIONS, 0, quiet_console)
    assert len(tokens) == 300
    assert "damaged" in caplog.text


@pytest.mark.parametrize(
    ("changes", "seed"),
    [({"temperature": 0.5}, 0), ({"top_p": 0.5}, 0), ({"rows_per_batch": 5}, 0), ({"prompt_tokens": 3}, 0), ({}, 1)],
    ids=str,
)
def test_other_options_and_seeds_give_other_tokens(teacher, prompt_text, quiet_console, changes, seed):
    tokens = teacher_samples(teacher, prompt_text, OPTIONS, 0, quiet_console)
    other = teacher_samples(teacher, prompt_text, OPTIONS.model_copy(update=changes), seed, quiet_console)
    assert other.tolist() != tokens.tolist()


def test_prompts_begin_again_when_all_are_used(llama, prompt_text, quiet_console):
    # Two prompts of four tokens, one every sixteen.
    tokens = teacher_samples(llama, prompt_text[:20], OPTIONS, 0, quiet_console)
    assert len(tokens) == 300


def test_texts_that_end_are_packed_with_their_end(llama, prompt_text, quiet_console, empty_cache, monkeypatch):
    end = llama.tokenizer.eos_token_id
    stopping = torch.full((6, 12), end)
    stopping[:, 0] = 9
    monkeypatch.setattr(module, "batch_writer", lambda *arguments: lambda prompts, seed: stopping[: len(prompts)])
    tokens = teacher_samples(llama, prompt_text, OPTIONS, 0, quiet_console)
    # Each text is four tokens of a prompt, one of its own and its end.
    assert tokens[4::6].tolist() == [9] * 50
    assert tokens[5::6].tolist() == [end] * 50


def test_a_fingerprint_tells_weights_and_configurations_apart(llama):
    before = teacher_fingerprint(llama.model)
    assert teacher_fingerprint(llama.model) == before
    llama.model.config.rms_norm_eps, epsilon = 1e-3, llama.model.config.rms_norm_eps
    assert teacher_fingerprint(llama.model) != before
    llama.model.config.rms_norm_eps = epsilon
    weight = llama.model.model.norm.weight
    weight[-1] += 1
    assert teacher_fingerprint(llama.model) != before
    weight[-1] -= 1
    assert teacher_fingerprint(llama.model) == before


def test_progress_names_the_teacher_and_the_speed(teacher, prompt_text, quiet_console, empty_cache):
    teacher_samples(teacher, prompt_text, OPTIONS, 0, quiet_console)
    said = quiet_console.file.getvalue()
    assert "text written by pocket: 300/300 tokens · " in said
    assert "tokens/s" in said


def test_texts_longer_than_the_teachers_positions_are_refused(llama, prompt_text, quiet_console):
    with pytest.raises(ConfigError, match=r"length=65 .* 64 positions of the teacher llama; give length=64 or less"):
        teacher_samples(llama, prompt_text, OPTIONS.model_copy(update={"length": 65}), 0, quiet_console)


def test_text_shorter_than_a_prompt_is_refused(llama, prompt_text, quiet_console):
    with pytest.raises(DataError, match=r"have 3 tokens, fewer than prompt_tokens=4"):
        teacher_samples(llama, prompt_text[:3], OPTIONS, 0, quiet_console)


def test_a_tokenizer_without_end_of_text_is_refused(llama, prompt_text, quiet_console):
    endless = deepcopy(llama.tokenizer)
    endless.eos_token = None
    with pytest.raises(
        DataError,
        match=r"has no end-of-text token .* in its tokenizer_config\.json",
    ):
        teacher_samples(replace(llama, tokenizer=endless), prompt_text, OPTIONS, 0, quiet_console)


@pytest.mark.gpu
def test_a_gpu_writes_the_same_tokens_again(llama, prompt_text, quiet_console, tmp_path, monkeypatch):
    on_gpu = replace(llama, model=deepcopy(llama.model).cuda())
    written = []
    for name in ("first", "again"):
        monkeypatch.setenv("ASNN_GOOSE_CACHE", str(tmp_path / name))
        written.append(teacher_samples(on_gpu, prompt_text, OPTIONS, 0, quiet_console).tolist())
    assert written[0] == written[1]
    assert len(written[0]) == 300
