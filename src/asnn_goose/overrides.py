"""Lays `key.path=value` overrides over a recipe: a new choice takes the place of the old one, whole."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from asnn_goose.config import Recipe
from asnn_goose.config_text import Section
from asnn_goose.errors import ConfigError
from asnn_goose.recipe_errors import section_choices, show

EXCLUSIVE = (
    ("data.name", "data.path"),
    ("data.name", "data.source"),
    ("data.path", "data.source"),
    ("data.prompts.name", "data.prompts.path"),
    ("training.steps", "training.tokens"),
)
"""Pairs of keys of which a recipe has one."""

OTHER_TEXT = ("data", "data.name", "data.path", "data.source", "data.parts")
"""Keys that give a run other text, or other parts of it, than its stages were weighed for."""

KEPT_WITH_NEW_SOURCE = ("rows", "held_out_fraction")
"""Keys of a plain text that say what is done with it, not where it comes from."""


def merge_overrides(recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's mapping with the overrides, dotted path to value, laid over it.

    The order of the overrides has no meaning: choices are replaced first, then shorter paths are set
    before the longer ones that lie inside them. `kind` and `data.source` empty their section; `name` and
    `path` of `data` and of `data.prompts` keep only `KEPT_WITH_NEW_SOURCE`; `student.mixer`,
    `training.steps` and `training.tokens` drop the fields that the new choice does not have; `OTHER_TEXT` drops the
    stages' `part_weights`.

    Raises:
        ConfigError: Two overrides exclude each other, or a path leads through a plain value.
    """
    for first, second in EXCLUSIVE:
        if first in overrides and second in overrides:
            raise ConfigError(f"{first} and {second} exclude each other; give one of them")
    merged = deepcopy(dict(recipe))
    for path, value in overrides.items():
        _drop_old_choice(merged, path, value)
    for path in sorted(overrides, key=lambda path: path.count(".")):
        _assign(merged, path.split("."), overrides[path])
    return merged


def _drop_old_choice(merged: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split(".")
    if path in OTHER_TEXT:
        _weigh_no_parts(merged.get("stages"))
    section: Any = merged
    for parent in parents:
        section = section.get(parent) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        return
    if path in ("data.name", "data.path", "data.prompts.name", "data.prompts.path"):
        _keep_only(section, KEPT_WITH_NEW_SOURCE)
    elif path in ("training.steps", "training.tokens"):
        _keep_only(section, _choices_of("training")[key].model_fields)
    elif path == "student.mixer":
        choice = _choices_of("student").get(str(value))
        _keep_only(section, section if choice is None else choice.model_fields)
    elif key == "kind" or path == "data.source":
        section.clear()


def _weigh_no_parts(stages: Any) -> None:
    for stage in stages if isinstance(stages, list | tuple) else ():
        if isinstance(stage, dict):
            stage.pop("part_weights", None)


def _choices_of(name: str) -> dict[str, type[Section]]:
    return section_choices(Recipe.model_fields[name].annotation)


def _keep_only(section: dict[str, Any], kept: Any) -> None:
    for key in [key for key in section if key not in kept]:
        del section[key]


def _assign(merged: dict[str, Any], parts: list[str], value: Any) -> None:
    section = merged
    for depth, part in enumerate(parts[:-1], start=1):
        child = section.get(part)
        if child is None:
            child = section[part] = _default_choice(parts[:depth])
        elif not isinstance(child, dict):
            path = ".".join(parts[:depth])
            raise ConfigError(f"{path} is {show(child)}, which has no keys to override; give {path}=... whole")
        section = child
    section[parts[-1]] = deepcopy(value)


def _default_choice(parts: list[str]) -> dict[str, Any]:
    """A missing section as an override finds it: empty but for the default choice of its union."""
    models: list[type[Section]] = [Recipe]
    field = None
    for part in parts:
        field = next((model.model_fields[part] for model in models if part in model.model_fields), None)
        if field is None:
            return {}
        models = list(section_choices(field.annotation).values())
    if field is None or not isinstance(field.default, Section) or not isinstance(field.discriminator, str):
        return {}
    return {field.discriminator: getattr(field.default, field.discriminator)}
