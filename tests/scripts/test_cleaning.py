import pytest

from pocket.cleaning import DuplicateFilter, clean_text, tidy_text, whole_sentences

STORY = (
    "One windy day, a fox named Pip found a red kite near the river. He did not know what it was. "
    "He asked the owl, who knew most things. The owl said that it could fly, but only with a friend. "
    "So Pip held the string and the owl held the kite, and both of them laughed all afternoon."
)
SENTENCES = STORY.split(". ")


def test_a_plain_story_is_a_document():
    cleaned = clean_text(STORY, ended=True)
    assert (cleaned.text, cleaned.rejection) == (STORY, "")


@pytest.mark.parametrize(
    ("raw", "tidy"),
    [
        ("\u201cHi,\u201d she said\u2026 it\u2019s me", '"Hi," she said... it\'s me'),
        ("a\u2014b 3\u20134", "a - b 3-4"),
        ("caf\u00e9\u00a0na\u00efve\u200b", "cafe naive"),
        ("  one \n\n\n two\tthree ", "one\n\ntwo three"),
        ("warm \u2600 sun", "warm sun"),
    ],
)
def test_signs_become_ascii(raw, tidy):
    assert tidy_text(raw) == tidy


def test_what_follows_the_last_sentence_is_cut():
    assert clean_text(STORY + " And then he", ended=False).text == STORY


def test_a_text_that_would_lose_too_much_is_rejected():
    raw = STORY + " and then" * 40
    assert clean_text(raw, ended=False).rejection == "unfinished"


def test_a_text_that_ends_in_the_middle_of_a_sentence_by_itself_is_rejected():
    assert clean_text(STORY + " And then he went to find another", ended=True).rejection == "open end"


def test_a_quotation_is_not_cut_in_two():
    assert whole_sentences('He came. She said, "Stay here. I am going') == "He came."
    assert whole_sentences('He came. "Stay here. I am going." Then') == 'He came. "Stay here. I am going."'
    assert whole_sentences("no end") == ""


@pytest.mark.parametrize(
    ("raw", "rejection"),
    [
        (STORY[:90] + ".", "short"),
        ("She smiled at him all day long. " * 20, "loop"),
        ("He ran and ran" + " and ran and ran" * 40 + ".", "loop"),
        (STORY + " \u0444\u0443\u043a\u0441.", "foreign"),
        (STORY + " As an AI language model, I have no kite.", "refusal"),
        (STORY + " I'm sorry, but I cannot fly.", "refusal"),
        (STORY + "\n\nThis story shows that friends matter.", "about itself"),
        ("Title: The Kite\n" + STORY, "about itself"),
        (STORY + "\n\n**Moral** be kind.", "markup"),
        (STORY + "\n1. Find a kite.\n2. Fly it.", "markup"),
        (STORY + "\n- Find a kite.\n- Fly it.", "markup"),
        (STORY + "\n```\nfly(kite)\n```.", "markup"),
        (STORY + "\nFox: Hello there.", "role"),
        (STORY + " H" + "o" * 40 + ".", "long word"),
    ],
)
def test_what_is_no_plain_prose_is_rejected(raw, rejection):
    assert clean_text(raw, ended=False).rejection == rejection


@pytest.mark.parametrize(
    "loop", [STORY, f"{SENTENCES[2]}. And then they went home.", "He ran and ran" + " and ran and ran" * 3 + "."]
)
def test_a_text_is_cut_where_it_begins_to_repeat_itself(loop):
    assert clean_text(f"{STORY} {loop}", ended=True) == clean_text(STORY, ended=True)


def test_a_loop_of_short_sentences_is_cut_too():
    cleaned = clean_text(STORY + ' He said, "A boat!"' * 20, ended=True)
    assert cleaned.rejection == ""
    assert cleaned.text.count("boat") <= 2


def test_a_text_that_goes_in_circles_all_along_is_rejected():
    names = ("Tom", "Ann", "Max", "Eve", "Sam", "Kim", "Ben", "Ida", "Leo", "Mia", "Ned", "Pam")
    text = " ".join(
        f"The happy little fox met {name} and {other} there." for name, other in zip(names, names[::-1], strict=True)
    )
    assert clean_text(text, ended=True).rejection == "loop"


def test_a_short_sentence_may_return():
    text = STORY + ' "Higher!" said the owl. "Higher!" said the fox.'
    assert clean_text(text, ended=True).text == text


def test_a_document_is_admitted_once():
    duplicates = DuplicateFilter()
    assert duplicates.admits(STORY)
    assert not duplicates.admits(STORY)
    assert not duplicates.admits(STORY.upper().replace(".", "!"))


def test_documents_with_the_same_beginning_are_duplicates():
    duplicates = DuplicateFilter()
    assert duplicates.admits(STORY)
    assert not duplicates.admits(STORY[:150] + "another end.")
    assert duplicates.admits(STORY[:60] + " another end, and a longer one, which no other text has after these words.")
