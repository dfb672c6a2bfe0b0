"""Thousands of different prompts for short stories and plain explanations, each with the first words of its answer.

A small model that is asked for a story nearly always tells the same one. The first words, which are given to it and are
part of the text, make each prompt's texts its own, and leave no room for "Sure! Here is a story". None ends with a
name, which the model might lengthen.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from pocket import words

Kind = Literal["story", "explanation"]
STORY_PART = 0.7
"""Part of the prompts that ask for a story."""
START_OF_TURN, END_OF_TURN = "<|im_start|>", "<|im_end|>"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What SmolLM2's own chat template says where a conversation has no system message."""

STORY_TASKS = (
    "Write a very short story for young children in simple words",
    "Tell a short and simple story for a small child",
    "Write a short bedtime story, with easy words and short sentences,",
)
EXPLANATION_TASKS = (
    "Answer in a few short, simple sentences for a young child.",
    "Explain it briefly in plain words, without lists.",
    "Answer in one short paragraph with easy words.",
)

Question = tuple[str, str]
"""A question and the first words of its answer, with {x} and {X} for the thing asked about."""
QUESTIONS: tuple[tuple[tuple[str, ...], tuple[Question, ...]], ...] = (
    (
        words.ANIMALS,
        (
            ("What is {x}?", "{X} is an animal that"),
            ("Where does {x} live?", "{X} lives"),
            ("What does {x} eat?", "{X} likes to eat"),
            ("How does {x} stay safe?", "{X} stays safe by"),
            ("How does {x} move?", "{X} moves"),
            ("What does {x} do in winter?", "In winter, {x}"),
            ("How does {x} take care of its young?", "{X} takes care of its young by"),
            ("Why do people like {x}?", "People like {x} because"),
        ),
    ),
    (
        words.FOODS,
        (
            ("What is {x} made of?", "{X} is made"),
            ("Where does {x} come from?", "Many people wonder where {x} comes from. It"),
            ("Why do people like {x}?", "People like {x} because"),
            ("How do you make or get {x}?", "To get {x}, people"),
            ("When do people eat or drink {x}?", "Many families have {x}"),
            ("How do you keep {x} fresh?", "To keep {x} fresh,"),
        ),
    ),
    (
        words.TOOLS,
        (
            ("What is {x} used for?", "{X} is used"),
            ("How does {x} work?", "{X} works"),
            ("Why do people need {x}?", "People need {x} because"),
            ("What is {x} made of?", "{X} is made of"),
            ("How do you take care of {x}?", "To take care of {x}, you"),
            ("How can you use {x} safely?", "You can use {x} safely if"),
        ),
    ),
    (
        words.WEATHER,
        (
            ("What is {x}?", "{X} is"),
            ("Why do we have {x}?", "We have {x} because"),
            ("What can you see or hear when there is {x}?", "When you think of {x}, you may"),
            ("Why do people like {x}?", "Many people like {x} because"),
            ("How does {x} begin?", "{X} begins when"),
            ("How does {x} change the day of a child?", "Because of {x}, a child can"),
        ),
    ),
    (
        words.BODY_PARTS,
        (
            ("Why do we have {x}?", "We have {x} because"),
            ("What do {x} do?", "Our {x} help us"),
            ("How do you take care of your {x}?", "To take care of your {x}, you"),
            ("How do {x} work?", "Our {x} work"),
        ),
    ),
    (
        words.PLANTS,
        (
            ("How does {x} grow?", "{X} grows"),
            ("What does {x} need?", "{X} needs"),
            ("What is {x}?", "{X} is a"),
            ("Why do people like {x}?", "People like {x} because"),
            ("What happens to {x} in winter?", "When winter comes, {x}"),
            ("Which animals visit {x}?", "Some animals visit {x} because"),
        ),
    ),
    (
        words.VEHICLES,
        (
            ("How does {x} move?", "{X} moves"),
            ("What is {x} used for?", "{X} is used"),
            ("Who rides in or on {x}?", "People ride {x} when"),
            ("How do you stay safe with {x}?", "To stay safe with {x}, you"),
            ("What sound does {x} make?", "You can hear {x} when"),
            ("What is {x} made of?", "{X} is made of"),
        ),
    ),
    (
        words.JOBS,
        (
            ("What does {x} do?", "{X} is a person who"),
            ("What tools does {x} use?", "{X} uses"),
            ("Why do we need {x}?", "We need {x} because"),
            ("What does {x} do in the morning?", "In the morning, {x}"),
            ("How do you become {x}?", "To become {x}, you"),
        ),
    ),
    (
        words.GOOD_DEEDS,
        (
            ("Why should you {x}?", "It is good to {x} because"),
            ("How can you learn to {x}?", "You can learn to {x} by"),
            ("What happens when you {x}?", "When you {x},"),
            ("When should you {x}?", "You should {x} when"),
            ("What happens if you never {x}?", "If you never {x},"),
        ),
    ),
    (
        words.EVENTS,
        (
            ("What can you do when {x}?", "When {x}, you can"),
            ("Why is it hard when {x}?", "It can be hard when {x} because"),
            ("How do you feel when {x}?", "When {x}, you may feel"),
            ("Who can help when {x}?", "When {x}, there is always"),
        ),
    ),
)


@dataclass(frozen=True)
class Prompt:
    """What the model is asked, and how its answer begins.

    Attributes:
        kind: What sort of text it is.
        request: The user's message.
        opening: First words of the answer; part of the text.
    """

    kind: Kind
    request: str
    opening: str


def compose_prompts(count: int, seed: int) -> list[Prompt]:
    """Different prompts in random order, `STORY_PART` of them for stories; fewer explanations if there are no more."""
    explanations = all_explanations()
    random.Random(f"explanations {seed}").shuffle(explanations)
    explanations = explanations[: count - round(count * STORY_PART)]
    prompts = explanations + list(islice(_stories(random.Random(f"stories {seed}")), count - len(explanations)))
    random.Random(f"order {seed}").shuffle(prompts)
    return prompts


def all_explanations() -> list[Prompt]:
    """Every question about everything it can be asked of, in every wording of the task."""
    return [
        Prompt("explanation", f"{question.format(x=thing)} {task}", opening.format(x=thing, X=_capitalized(thing)))
        for things, questions in QUESTIONS
        for thing in things
        for question, opening in questions
        for task in EXPLANATION_TASKS
    ]


def _stories(randomness: random.Random) -> Iterator[Prompt]:
    """Different stories without end."""
    seen = set()
    while True:
        prompt = _story(randomness)
        if prompt.opening not in seen:
            seen.add(prompt.opening)
            yield prompt


def _story(randomness: random.Random) -> Prompt:
    draw = randomness.choice
    hero, friend = draw(words.HEROES), draw(words.HEROES)
    name, friend_name = randomness.sample(words.NAMES, 2)
    day, place, thing, problem = draw(words.DAYS), draw(words.PLACES), draw(words.OBJECTS), draw(words.PROBLEMS)
    feeling, moral = draw(words.FEELINGS), draw(words.MORALS)
    about, opening = draw(
        (
            (f"{hero} named {name} and {thing}", f"{day}, {hero} named {name} found {thing} {place}."),
            (f"{name} who {problem}. It shows that {moral}", f"{day}, {name} was {place}. {name} {problem}."),
            (
                f"{hero} and {friend} {place}. It shows that {moral}",
                f"{day}, {hero} named {name} met {friend} {place}.",
            ),
            (
                f"{name}, {friend_name} and {thing}",
                f"{name} and {friend_name} were {place}. {day}, they found {thing}.",
            ),
            (
                f"{hero} named {name} who felt {feeling}",
                f"{_capitalized(hero)} named {name} felt very {feeling}. {day},",
            ),
            (f"two friends and {thing} {place}", f"{day}, {name} and {friend_name} saw {thing} {place}."),
            (f"{name} who sees {thing} {place}", f'"Look!" said {name}. "I see {thing}!" {friend_name} looked'),
            (f"{hero} who {problem}. In the end all are {feeling}", f"There was once {hero} who {problem}. {day},"),
        )
    )
    return Prompt("story", f"{draw(STORY_TASKS)} about {about}.", opening)


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def chat_text(prompt: Prompt) -> str:
    """The prompt in SmolLM2's chat format, up to the first words of the answer."""
    turns = (("system", SYSTEM), ("user", prompt.request))
    said = "".join(f"{START_OF_TURN}{role}\n{content}{END_OF_TURN}\n" for role, content in turns)
    return f"{said}{START_OF_TURN}assistant\n{prompt.opening}"
