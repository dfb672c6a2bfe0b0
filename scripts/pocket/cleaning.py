"""What a sampled text must be to become a document: plain ASCII prose that ends, and does not go in circles."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass

SHORTEST_CHARACTERS = 120
KEPT_FRACTION = 0.6
"""An unfinished text is cut behind its last whole sentence if this part of it is left."""
MOST_FOREIGN_SIGNS = 2
"""Signs without an ASCII form that are removed; a text with more is rejected."""
RUN_WORDS = 3
"""Words of the runs by which a repetition is known."""
MOST_REPEATED_IN_SENTENCE = 0.5
"""A sentence with a larger part of its runs repeated begins a loop."""
LEAST_REPEATED_RUNS = 2
"""So many of its runs must be repeated, so that a short sentence may return."""
RECENT_RUNS, MOST_REPEATED_RECENTLY = 24, 0.4
"""Short sentences begin a loop if a larger part of the latest runs is repeated."""
MOST_REPEATED = 0.17
"""A text with a larger part of its runs repeated goes in circles all along."""
PREFIX_CHARACTERS = 120
"""Two documents with the same first characters are near duplicates."""
LONGEST_WORD = 24

ASCII_FORMS = str.maketrans(
    {
        "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u2032": "'", "\u00b4": "'",
        "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u00ab": '"', "\u00bb": '"', "\u2033": '"',
        "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": " - ", "\u2015": " - ", "\u2212": "-",
        "\u2026": "...", "\u200b": None, "\u200d": None, "\ufeff": None,
    }
)  # fmt: skip
SENTENCE_END = re.compile(r"[.!?][\"')]*(?=\s|$)")
REFUSAL = re.compile(
    r"\b(as an ai|ai (language )?model|ai assistant|language model|smollm|hugging ?face|chatbot|my training"
    r"|i (cannot|can't) (help|assist|provide)|(i'm|i am) sorry, but|i don't have (personal|feelings))\b",
    re.IGNORECASE,
)
ABOUT_ITSELF = re.compile(
    r"^(sure|certainly|of course|here is|here's|title|note|prompt|story|question|answer)\b\s*[:,!]"
    r"|\b(this (short )?(story|tale|paragraph|explanation|response) (is|was|shows|teaches|uses|highlights)"
    r"|in this (short )?story|word count|the reader|young readers|young children|for a young child"
    r"|simple words|easy words|bullet points?)\b",
    re.IGNORECASE | re.MULTILINE,
)
MARKUP = re.compile(
    r"`|\*|#|<[|/a-z]|https?:|www\.|[{}\[\]\\|=_^~]|^\s*[-+>]\s|^\s*\(?\d+[.):]\s"
    r"|\b(def|import|print) ?\(|\bstep \d",
    re.IGNORECASE | re.MULTILINE,
)
ROLE = re.compile(r"^(user|assistant|system|narrator|[A-Z][a-z]+ ?\d?): ", re.MULTILINE)


@dataclass(frozen=True)
class Cleaned:
    """A text after cleaning.

    Attributes:
        text: The text, tidied and cut; to be used only if `rejection` is empty.
        rejection: Why the text is no document, in a word; empty if it is one.
    """

    text: str
    rejection: str


def clean_text(raw: str, ended: bool) -> Cleaned:
    """Tidy a sampled text, cut it behind its last whole sentence, and say whether it is a document.

    Args:
        raw: What was sampled, without the end-of-text token.
        ended: Whether the model ended it, so that what follows the last sentence is not just cut off.
    """
    text = tidy_text(raw)
    whole = whole_sentences(text)
    if len(whole) < KEPT_FRACTION * len(text):
        return Cleaned(whole, "unfinished")
    if ended and len(whole) < len(text) - LONGEST_WORD:
        return Cleaned(whole, "open end")
    straight = whole_sentences(before_loop(whole))
    if len(straight) < SHORTEST_CHARACTERS <= len(whole):
        return Cleaned(straight, "loop")
    return Cleaned(straight, rejection_of(straight))


def tidy_text(raw: str) -> str:
    """The text with ASCII quotes, dashes and letters, single spaces, and one blank line between paragraphs."""
    text = unicodedata.normalize("NFKD", raw.translate(ASCII_FORMS))
    text = "".join(sign for sign in text if not unicodedata.combining(sign))
    if sum(not sign.isascii() for sign in text) <= MOST_FOREIGN_SIGNS:
        text = "".join(filter(str.isascii, text))
    paragraphs = (" ".join(line.split()) for line in text.splitlines())
    return "\n\n".join(line for line in paragraphs if line)


def whole_sentences(text: str) -> str:
    """The text up to the last end of a sentence at which no quotation is open; empty if there is none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    closed = (end for end in reversed(ends) if text.count('"', 0, end) % 2 == 0)
    return text[: next(closed, 0)]


def rejection_of(text: str) -> str:
    """Why a tidied text is no document, in a word or two; empty if it is one."""
    if len(text) < SHORTEST_CHARACTERS:
        return "short"
    if not text.isascii():
        return "foreign"
    for name, pattern in (("refusal", REFUSAL), ("about itself", ABOUT_ITSELF), ("markup", MARKUP), ("role", ROLE)):
        if pattern.search(text):
            return name
    if repeated_fraction(text) > MOST_REPEATED:
        return "loop"
    if max(map(len, text.split())) > LONGEST_WORD:
        return "long word"
    return ""


def before_loop(text: str) -> str:
    """The text before the first sentence that repeats what was said; the whole text if there is none."""
    seen: set[tuple[str, ...]] = set()
    repeated: list[bool] = []
    words: list[str] = []
    start = 0
    for end in [*(match.end() for match in SENTENCE_END.finditer(text)), len(text)]:
        before, told = len(words), len(repeated)
        words += plain_words(text[start:end])
        for place in range(max(0, before - RUN_WORDS + 1), len(words) - RUN_WORDS + 1):
            run = tuple(words[place : place + RUN_WORDS])
            repeated.append(run in seen)
            seen.add(run)
        sentence, recent = repeated[told:], repeated[-RECENT_RUNS:]
        said_before = sum(sentence) >= LEAST_REPEATED_RUNS and _mean(sentence) > MOST_REPEATED_IN_SENTENCE
        in_a_loop = len(recent) == RECENT_RUNS and _mean(recent) > MOST_REPEATED_RECENTLY
        if said_before or in_a_loop:
            return text[:start].rstrip()
        start = end
    return text


def repeated_fraction(text: str) -> float:
    """The part of the text's runs of words that have stood before in it, 0 to 1."""
    words = plain_words(text)
    runs = [tuple(words[place : place + RUN_WORDS]) for place in range(len(words) - RUN_WORDS + 1)]
    return 1 - len(set(runs)) / max(1, len(runs))


def _mean(values: list[bool]) -> float:
    return sum(values) / len(values)


def plain_words(text: str) -> list[str]:
    """The words in lower case, without signs."""
    return re.findall(r"[a-z0-9']+", text.lower())


class DuplicateFilter:
    """Admits a document once: not again in whole, nor another with the same first characters."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def admits(self, text: str) -> bool:
        """Whether the document is new; it counts as seen from then on."""
        plain = " ".join(plain_words(text))
        keys = {hashlib.sha256(part.encode()).digest()[:12] for part in ("prefix " + plain[:PREFIX_CHARACTERS], plain)}
        new = not keys & self._seen
        self._seen |= keys
        return new
