from dataclasses import replace

import numpy as np
import pytest
import torch

from asnn_goose.data.tokens import TokenRows
from asnn_goose.models.compiling import CompiledForm
from asnn_goose.training.samples import PROMPT_TOKENS, held_out_beginnings, sample_side_by_side


@pytest.fixture(scope="module")
def rows():
    return TokenRows(np.arange(1000) % 4096, window=32, stride=32)


def documents(count):
    return [f"Story {number}. " + "One day a small fox went to the river. " * 10 for number in range(count)]


def test_beginnings_are_the_first_tokens_of_documents_evenly_spaced(rows, teacher):
    found = held_out_beginnings(["= A heading ="] * 50 + documents(9), rows, teacher.tokenizer, 3)
    assert [len(tokens) for tokens in found] == [PROMPT_TOKENS] * 3
    texts = [teacher.tokenizer.decode(tokens) for tokens in found]
    assert [text.split(".")[0] for text in texts] == ["Story 0", "Story 3", "Story 6"]


def test_a_single_long_text_is_begun_at_its_windows(rows, teacher):
    found = held_out_beginnings(documents(1), rows, teacher.tokenizer, 2)
    assert [tokens.tolist() for tokens in found] == [list(range(16)), list(range(480, 496))]


def test_none_are_made_if_none_are_asked_for(rows, teacher):
    assert held_out_beginnings(documents(5), rows, teacher.tokenizer, 0) == ()


def test_both_models_go_on_and_the_seed_decides(finished_run, teacher):
    from transformers import AutoModelForCausalLM

    student = AutoModelForCausalLM.from_pretrained(finished_run.folder.model)
    beginnings = [torch.tensor(teacher.tokenizer("One day, a small fox")["input_ids"])]
    first, again, other = (sample_side_by_side(teacher, student, beginnings, seed)[0] for seed in (1, 1, 2))
    assert first == again != other
    assert first.prompt == "One day, a small fox"
    assert first.teacher
    assert first.student
    assert first.teacher != first.student


def test_a_student_without_room_for_more_tokens_gives_no_samples(finished_run, teacher):
    from transformers import AutoModelForCausalLM

    student = AutoModelForCausalLM.from_pretrained(finished_run.folder.model)
    student.config.max_position_embeddings = PROMPT_TOKENS
    assert sample_side_by_side(teacher, student, [torch.arange(PROMPT_TOKENS)], 0) == ()


def test_a_teacher_that_states_no_limit_of_positions_is_continued_too(finished_run, teacher):
    from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM

    student = AutoModelForCausalLM.from_pretrained(finished_run.folder.model)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=4096, hidden_size=8, n_layer=1, n_head=2)).eval()
    without_limit = replace(teacher, model=bloom, body=CompiledForm(bloom.base_model, None, "teacher"))
    assert len(sample_side_by_side(without_limit, student, [torch.arange(PROMPT_TOKENS)], 0)) == 1
