import json
import shutil
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asnn_goose.errors import ModelError
from asnn_goose.inference import generation
from asnn_goose.inference.generation import SamplingOptions, continue_prompt
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.student import GooseForCausalLM

PROMPT = "Return the number of"
SAMPLED = SamplingOptions(max_new_tokens=12, temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def run_folder(teacher_directory, tmp_path_factory):
    """A run folder whose student has 32 learned positions and random weights."""
    folder = tmp_path_factory.mktemp("run")
    config = GooseConfig(vocab_size=4096, hidden_size=16, num_hidden_layers=2, max_position_embeddings=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GooseForCausalLM(config).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(teacher_directory).save_pretrained(folder / "model")
    return folder


@pytest.fixture
def teacher_copy(teacher_directory, tmp_path):
    return shutil.copytree(teacher_directory, tmp_path / "teacher")


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@torch.no_grad()
def likeliest(folder, ids, tokens):
    """The greedy continuation, computed without a cache and without generate."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for _ in range(tokens):
        ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(dim=-1)), dim=1)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def encode(folder, text):
    return AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]


def test_greedy_takes_the_likeliest_token_each_time(teacher_directory):
    expected = likeliest(teacher_directory, encode(teacher_directory, PROMPT), tokens=12)
    options = SamplingOptions(max_new_tokens=12, greedy=True)
    assert continue_prompt(str(teacher_directory), PROMPT, options) == expected


def test_a_student_is_continued_from_its_run_folder(run_folder):
    expected = likeliest(run_folder / "model", encode(run_folder / "model", PROMPT), tokens=8)
    options = SamplingOptions(max_new_tokens=8, greedy=True)
    assert continue_prompt(str(run_folder), PROMPT, options) == expected


def test_greedy_ignores_the_seed(teacher_directory):
    first, second = (SamplingOptions(max_new_tokens=8, greedy=True, seed=seed) for seed in (1, 2))
    assert continue_prompt(str(teacher_directory), PROMPT, first) == continue_prompt(
        str(teacher_directory), PROMPT, second
    )


def test_the_same_seed_gives_the_same_text(teacher_directory):
    first, second = (continue_prompt(str(teacher_directory), PROMPT, SAMPLED) for _ in range(2))
    assert first == second
    assert first.startswith(PROMPT)


def test_another_seed_gives_another_text(teacher_directory):
    other = SamplingOptions(max_new_tokens=12, temperature=1.0, seed=6)
    texts = [continue_prompt(str(teacher_directory), PROMPT, options) for options in (SAMPLED, other)]
    assert texts[0] != texts[1]


def test_sampling_leaves_the_global_generator_as_it_was(teacher_directory):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    continue_prompt(str(teacher_directory), PROMPT, SAMPLED)
    assert torch.equal(torch.rand(4), expected)


def test_sampling_draws_from_the_whole_vocabulary(run_folder, monkeypatch):
    # So hot that all 4096 tokens are as good as equally likely: 150 draws give about 120 different ones, of which bytes
    # that are no text look alike; no more than 50 if transformers' own default cut the rest off.
    monkeypatch.setattr(generation, "load_causal_lm", cache(generation.load_causal_lm))
    hot = [SamplingOptions(max_new_tokens=1, temperature=1e4, top_p=1.0, seed=seed) for seed in range(150)]
    assert len({continue_prompt(str(run_folder), "a", options) for options in hot}) > 50


def test_an_empty_prompt_begins_with_the_start_token(teacher_copy):
    start = AutoTokenizer.from_pretrained(teacher_copy).bos_token_id
    expected = likeliest(teacher_copy, torch.tensor([[start]]), tokens=6)
    assert continue_prompt(str(teacher_copy), "", SamplingOptions(max_new_tokens=6, greedy=True)) == expected


def test_a_start_token_with_the_id_0_is_a_start_token(teacher_copy):
    assert AutoTokenizer.from_pretrained(teacher_copy).bos_token_id == 0
    change_json(teacher_copy / "tokenizer_config.json", eos_token=None)
    continue_prompt(str(teacher_copy), "", SamplingOptions(max_new_tokens=2, greedy=True))


def test_an_empty_prompt_without_a_start_token_is_refused(teacher_copy):
    change_json(teacher_copy / "tokenizer_config.json", bos_token=None, eos_token=None)
    with pytest.raises(ModelError, match="no start token: give at least one word"):
        continue_prompt(str(teacher_copy), "", SAMPLED)


@pytest.mark.parametrize("greedy", [True, False])
def test_a_student_that_runs_out_of_positions_says_so_in_one_line(run_folder, greedy):
    with pytest.raises(ModelError, match="32 learned positions") as caught:
        continue_prompt(str(run_folder), PROMPT, SamplingOptions(max_new_tokens=40, greedy=greedy))
    assert "\n" not in str(caught.value)


def test_a_teacher_that_runs_out_of_positions_says_so_in_one_line(teacher_directory):
    with pytest.raises(ModelError, match="ask for fewer") as caught:
        continue_prompt(str(teacher_directory), 80 * PROMPT, SamplingOptions(max_new_tokens=2, greedy=True))
    assert "\n" not in str(caught.value)


def test_no_tokens_to_add_is_refused(teacher_directory):
    with pytest.raises(ModelError, match="greater than 0"):
        continue_prompt(str(teacher_directory), PROMPT, SamplingOptions(max_new_tokens=0))
