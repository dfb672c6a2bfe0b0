"""Turns what pydantic says of a recipe into one line with the dotted path the user wrote, and a way out."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import isclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import Tag, ValidationError
from pydantic_core import ErrorDetails

from asnn_goose.config import Recipe
from asnn_goose.config_text import Section

DISCRIMINATORS = ("kind", "mixer")
"""Fields whose value says which section of a union a mapping is."""

MAX_SHOWN_CHARACTERS = 60

EXPECTATIONS = {
    "int_type": "a whole number such as 1000000",
    "int_from_float": "a whole number such as 1000000",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text (quote a value that reads as a number, a date or null)",
    "path_type": "a path",
    "tuple_type": "a list such as [a, b]",
    "list_type": "a list such as [a, b]",
    "dict_type": "a section with keys",
    "model_type": "a section with keys",
    "model_attributes_type": "a section with keys",
}
"""Plain words for pydantic's type errors; its other messages are plain enough."""


@dataclass(frozen=True)
class Place:
    """Where in a recipe an error is, without the tags that pydantic adds for unions."""

    path: str
    """Dotted path as the user would write it; empty for the recipe itself."""
    section: type[Section] | None
    """The section that holds the last key of the path; None inside a value."""
    siblings: tuple[type[Section], ...]
    """The sections that could have stood in this one's place, this one included."""
    tags: tuple[str, ...]
    """What the union that the path leads to is chosen by; empty where it leads to no union."""


def section_choices(annotation: Any) -> dict[str, type[Section]]:
    """Sections that a field of this type may hold, by tag; an untagged one goes by its class name."""
    if isclass(annotation) and issubclass(annotation, Section):
        field = next((annotation.model_fields[key] for key in DISCRIMINATORS if key in annotation.model_fields), None)
        tags = get_args(field.annotation) if field is not None else (annotation.__name__,)
        return dict.fromkeys(tags, annotation)
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        models = section_choices(inner)
        written = [item.tag for item in metadata if isinstance(item, Tag)]
        return dict.fromkeys(written, next(iter(models.values()))) if written and models else models
    choices: dict[str, type[Section]] = {}
    for argument in get_args(annotation):
        choices |= section_choices(argument)
    return choices


def describe_errors(error: ValidationError) -> str:
    """One line: the first error of a recipe, and how many other places are wrong."""
    lines: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        place = locate(detail["loc"])
        if place.path in lines and detail["type"] == "literal_error":
            # A word that may stand where a number may.
            words = detail["ctx"]["expected"]
            lines[place.path] = lines[place.path].replace(", got ", f" or {words}, got ", 1)
        lines.setdefault(place.path, _describe(detail, place))
    first, *others = lines.values()
    return first if not others else f"{first} (and {len(others)} more)"


def locate(location: tuple[int | str, ...]) -> Place:
    """The place that a pydantic error location means, found by walking the recipe's own fields."""
    path = ""
    holder: type[Section] | None = Recipe
    inside: type[Section] | None = Recipe
    choices: dict[str, type[Section]] = {}
    siblings: tuple[type[Section], ...] = (Recipe,)
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif len(set(choices.values())) > 1:
            siblings, inside, choices = tuple(choices.values()), choices.get(part), {}
        elif inside is not None:
            path, holder = _join(path, part), inside
            field = inside.model_fields.get(part)
            choices = section_choices(field.annotation) if field is not None else {}
            models = set(choices.values())
            inside = models.pop() if len(models) == 1 else None
            siblings = siblings if inside is None else (inside,)
    return Place(path, holder, siblings, tuple(choices))


def show(value: Any) -> str:
    """A value as YAML would hold it, on one line, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 1] + "…"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _describe(detail: ErrorDetails, place: Place) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "value_error":
            return str(context["error"])
        case "training_budget" | "data_source":
            return detail["msg"]
        case "schedule":
            kind = detail["input"].get("kind")
            return f"{place.path}.kind: expected one of {', '.join(place.tags)}, got {show(kind)}"
        case "extra_forbidden":
            return _describe_unknown_key(place)
        case "missing" if isinstance(detail["loc"][-1], int):
            return f"{place.path} is missing: the list is too short"
        case "missing":
            return f"{place.path} is missing and has no default"
        case "union_tag_not_found" | "union_tag_invalid":
            path = _join(place.path, context["discriminator"].strip("'"))
            return f"{path}: expected one of {', '.join(place.tags)}, got {show(context.get('tag'))}"
        case "too_long" | "too_short":
            limit = context.get("max_length", context.get("min_length"))
            return f"{place.path}: expected a list of {limit}, got {show(detail['input'])}"
        case "string_pattern_mismatch":
            return f"{place.path}: expected text that matches {context['pattern']}, got {show(detail['input'])}"
    expectation = EXPECTATIONS.get(detail["type"]) or _expectation_of(detail["msg"])
    return f"{place.path or 'the recipe'}: expected {expectation}, got {show(detail['input'])}"


def _expectation_of(message: str) -> str:
    """`Input should be greater than 0` becomes `a value greater than 0`."""
    expected = message.removeprefix("Input should be ")
    return f"a value {expected}" if expected.startswith(("greater", "less")) else expected


def _describe_unknown_key(place: Place) -> str:
    parent, _, key = place.path.rpartition(".")
    names = list(place.section.model_fields) if place.section is not None else []
    if any(key in model.model_fields for model in place.siblings):
        return f"{place.path} does not apply to the chosen {parent}, which takes {', '.join(names)}"
    abbreviated = [name for name in names if "".join(word[0] for word in name.split("_")) == key]
    near = [_join(parent, name) for name in abbreviated or get_close_matches(key, names, n=2)]
    near = near or [path for path in dict.fromkeys(recipe_paths()) if path.rpartition(".")[2] == key]
    if near:
        return f"{place.path}: unknown key; did you mean {' or '.join(near[:2])}?"
    return f"{place.path}: unknown key; {parent or 'a recipe'} takes {', '.join(names)}"


def recipe_paths(section: type[Section] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted path a recipe can hold, choices of a union one after the other."""
    for name, field in section.model_fields.items():
        yield _join(prefix, name)
        for model in dict.fromkeys(section_choices(field.annotation).values()):
            yield from recipe_paths(model, _join(prefix, name))
