import re
from html.parser import HTMLParser

import pytest

from asnn_goose.checks import check, check_between
from asnn_goose.config_recorded import recorded_facts
from asnn_goose.health import PreviousRun, training_health
from asnn_goose.recorded import Comparison
from asnn_goose.report.page import flatten, format_count, format_duration, format_gibibytes, format_percent, report_page
from asnn_goose.results import Controls, Figure, ModelResult, Perplexities, Ratio, SpikeResult, Stage

VOID = {"meta", "img", "link", "br"}


class Outline(HTMLParser):
    """Tags that were not closed, references to anything outside the page, and the page's text."""

    def __init__(self):
        super().__init__()
        self.open_tags, self.references, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(page):
    outline = Outline()
    outline.feed(page)
    assert outline.open_tags == []
    return outline


def text_of(page):
    return " ".join(" ".join(read(page).text).split())


def page_of(results, **fields):
    return report_page(results.model_copy(update=fields), {"python": "3.12", "packages": {"torch": "2.13"}}, "a: <b>\n")


def test_the_page_needs_nothing_but_itself(results):
    page = page_of(results, figures={"training": Figure(filename="training.png", base64="QUJD")})
    assert read(page).references == ["data:image/png;base64,QUJD"]
    assert not re.search(r"<script|<link|@import|url\(|https?://", page)


def test_the_headline_stands_with_its_protocol(results):
    text = text_of(page_of(results))
    assert "Student ÷ teacher 1.50×" in text
    assert "Student perplexity 30.00 Teacher perplexity 20.00" in text
    assert "standard, tokenizer gpt2, windows of 256 tokens, stride 256, 16,384 tokens" in text


def test_text_of_others_is_escaped(results):
    page = page_of(results)
    assert "<h1>&lt;quick &amp; start&gt;</h1>" in page
    assert "a: &lt;b&gt;" in page


def test_what_was_not_measured_says_so(results):
    text = text_of(page_of(results, student=ModelResult(), ratio=Ratio(), spikes=SpikeResult()))
    assert "Student ÷ teacher not measured" in text
    assert "None" not in text


def test_spikes_are_shown_for_each_site(results):
    text = text_of(page_of(results))
    assert "0 k 0.380 not measured not measured not measured 1.250" in text
    assert "0 v 0.380 not measured not measured not measured not measured" in text


def test_planned_and_measured_share_stand_side_by_side(results):
    assert "multiply-accumulates: 83.1% planned, not measured. Events" in text_of(
        page_of(results, spikes=SpikeResult(spike_fed_mac_share=0.831))
    )
    measured = SpikeResult(
        spike_fed_mac_share=0.831,
        measured_spike_fed_mac_share=0.7,
        additions_per_token=1234.4,
        silent_layers=("a", "b"),
    )
    text = text_of(page_of(results, spikes=measured))
    assert "83.1% planned, 70.0% measured (given nothing but 0: a, b). Additions in their place: 1,234 a token." in text


def test_checks_are_counted_and_shown(results):
    text = text_of(page_of(results))
    assert "Checks: 1 of 2 passed" in text
    assert "density 0.3800 > 0.1 passed" in text
    assert "mfu not measured > 0.35 failed" in text


def test_stages_and_adaptation_appear_where_there_were_any(results):
    assert "Stages" not in text_of(page_of(results))
    stages = (Stage(name="align", perplexity=25.0, ratio_to_teacher=1.25, tokens=1000),)
    text = text_of(page_of(results, stages=stages, perplexities=Perplexities(after_adaptation=28.0)))
    assert "align 1,000 25.00 1.25" in text
    assert "Student after adaptation 28.00 1.40" in text


def test_controls_stand_beside_the_student_where_they_were_measured(results):
    assert "Control" not in text_of(page_of(results))
    text = text_of(page_of(results, controls=Controls(random_weights=4000.0)))
    assert "Control: random weights 4,000.00 200.00" in text
    assert "weights only copied" not in text


def test_recipe_environment_and_recorded_line_are_there(results):
    text = text_of(page_of(results))
    assert "packages.torch 2.13" in text
    assert "v14.3 307.70 44.60 6.90" in text
    assert "Ended by early stopping" in text


def test_the_page_follows_the_reader_s_light_and_width(results):
    page = page_of(results)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport" content="width=device-width' in page


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.21, "3.2 s"), (171.2, "2 min 51 s"), (59.96, "1 min 0 s"), (14400, "4 h 0 min")]
)
def test_durations_read_in_two_units(seconds, text):
    assert format_duration(seconds) == text


def test_numbers_carry_their_units():
    assert format_count(1234567) == "1,234,567"
    assert format_percent(0.1234) == "12.3%"
    assert format_gibibytes(3 * 2**29) == "1.50 GiB"


def test_nested_values_get_dotted_names_and_empty_ones_none():
    assert flatten({"a": {"b": 1, "c": None}, "d": 2}) == {"a.b": "1", "d": "2"}


def test_a_run_that_repeats_a_version_stands_beside_its_record(results):
    assert "This run Outcome" not in text_of(page_of(results))
    text = text_of(page_of(results, comparison=Comparison(repeated=recorded_facts("v14.3"))))
    assert "v14.3 Recorded This run Outcome success" in text
    assert "After test-time training ÷ teacher 6.90 –" in text
    assert "Best ÷ teacher 6.88 1.50" in text


def test_health_is_shown_as_far_as_it_was_measured(results):
    assert "Training health" not in text_of(page_of(results))
    health = training_health([{"step": 1, "clip_rate": 0.5}], PreviousRun(folder="old", tokens_per_second=9.0))
    text = text_of(page_of(results, health=health))
    assert "Steps clipped fraction of steps 0.5 0.5 0.5 0.5 0.5" in text
    assert "Gradient norm" not in text
    assert "old on an unknown device: 9 tokens per second; speeds of two devices do not compare." in text


def test_a_check_tells_its_parts_and_whether_it_only_warns(results):
    checks = (check("x", 0.0, ">", 0.0, warns=True, note="a <part>"), check_between("y", 0.5, 0.1, 0.9, ends=False))
    text = text_of(page_of(results, checks=checks))
    assert "x a <part> 0.0000 > 0 warning" in text
    assert "y 0.5000 in (0.1, 0.9) passed" in text
