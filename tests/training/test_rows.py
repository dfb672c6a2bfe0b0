from pathlib import Path

import numpy as np
import pytest

from asnn_goose.config_text import LocalText, MixedText, MixturePart, RecordedRows, TeacherSamples
from asnn_goose.data.batches import BatchPlan
from asnn_goose.data.mixture import MixedRows
from asnn_goose.data.text import load_text
from asnn_goose.data.tokens import TokenRows, tokenize_documents, training_rows
from asnn_goose.errors import DataError
from asnn_goose.training.rows import prepare_text


@pytest.fixture
def plain(text_file: Path) -> LocalText:
    return LocalText(path=text_file, documents="paragraph", held_out_fraction=0.1)


@pytest.fixture
def samples(plain: LocalText) -> TeacherSamples:
    return TeacherSamples(prompts=plain, tokens=400, length=16, prompt_tokens=4, rows_per_batch=16)


def same_rows(first: TokenRows | MixedRows, second: TokenRows | MixedRows) -> bool:
    plans = [BatchPlan(rows, batch_size=4, seed=0) for rows in (first, second)]
    return len(first) == len(second) and bool((plans[0].batch(0) == plans[1].batch(0)).all())


@pytest.mark.parametrize("cut", [{}, {"rows": RecordedRows(max_line_tokens=9)}], ids=["packed", "recorded"])
def test_plain_text_is_tokenized_and_cut_as_its_recipe_says(plain, teacher, quiet_console, cut):
    data = plain.model_copy(update=cut)
    text, prepared = load_text(data, 7), prepare_text(data, 7, teacher, quiet_console)
    tokens = tokenize_documents(text.train, teacher.tokenizer, data.rows)
    for window in (16, 64):
        assert same_rows(prepared.rows(window), training_rows(tokens, window, data.rows))
    assert list(prepared.held_out) == list(text.held_out)
    assert (prepared.separator, prepared.source) == (text.separator, text.source)


def test_samples_are_evaluated_on_the_held_out_text_of_their_prompts(samples, teacher, quiet_console):
    prepared = prepare_text(samples, 7, teacher, quiet_console)
    text = load_text(samples.prompts, 7)
    assert (list(prepared.held_out), prepared.separator) == (list(text.held_out), text.separator)
    assert len(prepared.rows(16)) == 25
    assert prepared.source == f"400 tokens written by pocket, prompts: {text.source}"


def test_a_mixture_holds_the_rows_of_each_part(plain, samples, teacher, quiet_console):
    parts = (MixturePart(weight=1.0, text=plain), MixturePart(weight=3.0, text=samples))
    prepared = prepare_text(MixedText(parts=parts), 7, teacher, quiet_console)
    rows = prepared.rows(16)
    assert isinstance(rows, MixedRows)
    assert rows.weights == (0.25, 0.75)
    for part, own in zip((plain, samples), rows.parts, strict=True):
        assert same_rows(own, prepare_text(part, 7, teacher, quiet_console).rows(16))
    assert prepared.source.startswith("a mixture of 25.0% ")


def test_a_stage_may_take_a_mixture_in_other_shares(plain, samples, teacher, quiet_console):
    parts = (MixturePart(weight=1.0, text=plain), MixturePart(weight=3.0, text=samples))
    prepared = prepare_text(MixedText(parts=parts), 7, teacher, quiet_console)
    rows = prepared.rows(16, (2.0, 1.0))
    assert isinstance(rows, MixedRows)
    assert rows.weights == (2.0, 1.0)
    assert same_rows(prepared.rows(16, (0.0, 1.0)), prepare_text(samples, 7, teacher, quiet_console).rows(16))


def test_a_mixture_is_evaluated_on_the_part_that_it_names(plain, teacher, quiet_console, tmp_path):
    (tmp_path / "other.txt").write_text("One goose flies.\n" * 100, encoding="utf-8")
    other = LocalText(path=tmp_path / "other.txt")
    parts = (MixturePart(weight=1.0, text=other), MixturePart(weight=1.0, text=plain))
    held_out = [
        list(prepare_text(MixedText(parts=parts, held_out_from=part), 7, teacher, quiet_console).held_out)
        for part in (0, 1)
    ]
    assert held_out == [list(load_text(text, 7).held_out) for text in (other, plain)]


def test_a_mixture_of_one_part_is_that_part(plain, teacher, quiet_console):
    alone = MixedText(parts=(MixturePart(weight=0.2, text=plain),))
    rows = prepare_text(alone, 7, teacher, quiet_console).rows(32)
    assert same_rows(rows, prepare_text(plain, 7, teacher, quiet_console).rows(32))


def test_two_windows_read_the_same_tokens(samples, teacher, quiet_console):
    prepared = prepare_text(samples, 7, teacher, quiet_console)
    short, long = (prepared.rows(window).take(np.arange(4)) for window in (8, 16))
    assert short.reshape(-1).tolist() == long[:2].reshape(-1).tolist()


def test_a_part_too_short_for_the_window_is_refused(samples, teacher, quiet_console):
    with pytest.raises(DataError, match=r"two rows of training\.window=201"):
        prepare_text(samples, 7, teacher, quiet_console).rows(201)
