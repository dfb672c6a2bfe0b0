import math

import numpy as np
import pytest
import torch

from asnn_goose.data.pocket import POCKET_TEACHER, pocket_documents
from pocket.judge import judge_teacher, trigram_losses_nats
from pocket.teacher import (
    TeacherShape,
    TrainingPlan,
    losses_nats,
    make_teacher,
    position_losses,
    train_teacher,
    train_tokenizer,
)
from pocket.trigram import KneserNeyTrigram

WINDOW, VOCABULARY = 32, 300
SHAPE = TeacherShape(vocabulary=VOCABULARY, window=WINDOW, width=16, layers=1, heads=2)
TEXTS = [f"The {animal} saw a {thing}." for animal in ("fox", "owl", "hen") for thing in ("kite", "bell", "map")]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, VOCABULARY)


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    """A model trained for a moment on a text that counts up and down, its figures and its folder."""
    folder = tmp_path_factory.mktemp("model")
    tokens = np.tile(np.arange(16, dtype=np.uint16), 60)
    held_out = torch.from_numpy(tokens[: 4 * WINDOW].astype(np.int64)).view(4, WINDOW)
    plan = TrainingPlan(minutes=1.0, epochs=12, rows=4, warmup_steps=5, evaluation_steps=20)
    model = make_teacher(SHAPE, tokenizer.eos_token_id, seed=0)
    return model, train_teacher(model, tokens, held_out, plan, folder), folder


def test_the_tokenizer_is_the_same_for_the_same_texts(tokenizer):
    again = train_tokenizer(TEXTS * 5, VOCABULARY)
    assert tokenizer.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()


def test_the_tokenizer_gives_back_any_text_and_knows_the_end(tokenizer):
    text = 'Unseen: "caf\u00e9"\n\n 42?'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|endoftext|>"
    assert len(tokenizer("<|endoftext|>")["input_ids"]) == 1


def test_the_shipped_size_stays_below_ten_megabytes():
    assert 3e6 < make_teacher(TeacherShape(), 0, seed=0).num_parameters() < 5e6


def test_training_lowers_the_loss_and_keeps_its_epochs(trained):
    _, figures, _ = trained
    losses = [evaluation["loss_nats"] for evaluation in figures["evaluations"]]
    assert losses[-1] < 0.8 * math.log(VOCABULARY)
    assert figures["epochs"] == pytest.approx(12, rel=0.05)


def test_the_best_weights_lie_in_the_folder_in_half_precision(trained):
    from transformers import GPT2LMHeadModel

    model, figures, folder = trained
    assert figures["best"] == figures["evaluations"][-1]
    saved = GPT2LMHeadModel.from_pretrained(folder)
    assert saved.dtype == torch.float16
    assert torch.equal(saved.transformer.wte.weight, model.transformer.wte.weight.half())


def test_losses_are_those_of_the_models_own_loss(trained):
    model = trained[0]
    rows = torch.randint(0, VOCABULARY, (3, WINDOW), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=rows, labels=rows).loss
    assert losses_nats(model, rows).mean() == pytest.approx(expected.item(), abs=1e-5)


def test_positions_are_counted_from_the_second_token():
    losses = torch.zeros(2, 511)
    losses[:, 8:127] = 100.0
    losses[:, :8], losses[:, 127:] = 3.0, 1.0
    assert position_losses(losses) == (3.0, 1.0)


def test_the_trigram_predicts_each_rows_own_tokens():
    tokens = np.random.default_rng(0).integers(0, 10, 2 * WINDOW)
    trigram = KneserNeyTrigram(tokens, 10)
    losses = trigram_losses_nats(trigram, torch.from_numpy(tokens).view(2, WINDOW))
    assert losses.shape == (2, WINDOW - 2)
    assert np.array_equal(losses[1], trigram.loss_nats(tokens[WINDOW:]))


def test_the_judge_compares_the_same_tokens(trained, tokenizer):
    model = trained[0]
    corpus = np.tile(np.arange(16), 20)
    rows = torch.from_numpy(corpus[: 4 * WINDOW]).view(4, WINDOW)
    judgment = judge_teacher(model, tokenizer, {}, corpus, rows, seed=0)
    assert judgment.held_out_tokens == 4 * (WINDOW - 2)
    assert judgment.teacher_perplexity == pytest.approx(math.exp(losses_nats(model, rows)[:, 1:].mean()), rel=1e-4)
    assert not judgment.passes
    assert judgment.samples == judge_teacher(model, tokenizer, {}, corpus, rows, seed=0).samples


def test_the_shipped_text_gives_the_shipped_tokenizer_to_the_byte(tmp_path):
    made = train_tokenizer(pocket_documents("train"), 4096)
    made.model_max_length = 512
    made.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (POCKET_TEACHER / name).read_bytes()
