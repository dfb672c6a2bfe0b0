"""Recipes: the shipped ones, a user's YAML file, and overrides, read as YAML 1.2 and checked strictly."""

import json
from collections.abc import Sequence
from difflib import get_close_matches
from hashlib import sha256
from importlib.resources import files
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from asnn_goose.config import Recipe
from asnn_goose.errors import ConfigError
from asnn_goose.overrides import merge_overrides
from asnn_goose.recipe_errors import describe_errors, show
from asnn_goose.scales import scaled_recipe

MAX_DEPTH = 20
"""Nested levels a recipe may have; an alias that contains itself has no end."""

SAME_AS = {"quickstart": "convert-pocket"}
"""Names that stand for another recipe."""

RECIPES = files("asnn_goose").joinpath("recipes")


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    own = [entry.name.removesuffix(".yaml") for entry in RECIPES.iterdir() if entry.name.endswith(".yaml")]
    return sorted([*own, *SAME_AS])


def recipe_name(name_or_path: str) -> str:
    """What runs of this recipe are called: a shipped recipe's name, or a file's name without its ending."""
    return name_or_path if name_or_path in recipe_names() else Path(name_or_path).stem


def load_recipe(name_or_path: str, overrides: Sequence[str]) -> Recipe:
    """The recipe of a shipped name or a YAML file, with `key.path=value` overrides laid over it.

    An override `scale=` comes first and makes the recipe another size. Of two overrides of one key the later counts;
    otherwise their order has no meaning (`merge_overrides`).

    Raises:
        ConfigError: No such recipe, no YAML, or no valid recipe; one line that says where and what to do.
    """
    recipe = parse_yaml(_recipe_text(name_or_path), name_or_path)
    if not isinstance(recipe, dict):
        raise ConfigError(
            f"{name_or_path}: expected a recipe with keys such as `data` and `training`, got {show(recipe)}"
        )
    changes = dict(_parse_override(override) for override in overrides)
    if "scale" in changes:
        # What a scale makes of a recipe, other overrides may change again.
        recipe = scaled_recipe(recipe, changes.pop("scale"))
    merged = merge_overrides(recipe, changes)
    _check_json(merged, ())
    try:
        return Recipe.model_validate_json(json.dumps(merged))
    except ValidationError as error:
        raise ConfigError(describe_errors(error)) from error


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that `load_recipe` reads back as the same recipe."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 4096
    text = StringIO()
    yaml.dump(recipe.model_dump(mode="json"), text)
    return text.getvalue()


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of the resolved recipe as canonical JSON, in hexadecimal."""
    canonical = json.dumps(recipe.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return sha256(canonical.encode()).hexdigest()


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, for editors that complete and check YAML."""
    return Recipe.model_json_schema()


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML 1.2 text: `3e-4` is a number; `on`, `yes` and `1:30` are text.

    Args:
        text: One YAML document.
        source: What the error calls the text, such as its file's name.

    Raises:
        ConfigError: The text is not YAML; the line says where.
    """
    try:
        yaml: Any = YAML(typ="safe", pure=True)
        yaml.version = (1, 2)
        return yaml.load(text)
    except MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        what = " ".join(str(error.problem or error.context).split())
        raise ConfigError(f"{source}{where}: not YAML: {what}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from error


def _recipe_text(name_or_path: str) -> str:
    names = recipe_names()
    if name_or_path in names:
        return RECIPES.joinpath(f"{SAME_AS.get(name_or_path, name_or_path)}.yaml").read_text(encoding="utf-8")
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        near = get_close_matches(name_or_path, names, n=2, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(
            f"no recipe {name_or_path!r}; {meant}`asnn-goose presets` lists them, and a .yaml file is one too"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"recipe file {name_or_path!r} cannot be read ({error.strerror}); "
            "`asnn-goose presets` lists the shipped recipes"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe file {name_or_path!r} is not UTF-8 text; save it as UTF-8") from error


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    path = key.strip()
    if not equals or not all(path.split(".")):
        raise ConfigError(f"override {override!r}: expected key.path=value, such as training.steps=100")
    try:
        return path, parse_yaml(text, path)
    except ConfigError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML; quote text with special signs") from error


def _check_json(value: Any, path: tuple[str, ...]) -> None:
    """Refuse what YAML can hold and JSON cannot: dates, sets, infinities, circles."""
    if len(path) > MAX_DEPTH:
        raise ConfigError(f"{'.'.join(path[:3])}...: nested deeper than {MAX_DEPTH} levels")
    match value:
        case None | bool() | int() | str():
            return
        case float() if isfinite(value):
            return
        case list():
            for index, item in enumerate(value):
                _check_json(item, (*path, str(index)))
        case dict() if all(isinstance(key, str | int) for key in value):
            for key, item in value.items():
                _check_json(item, (*path, str(key)))
        case float():
            raise ConfigError(f"{'.'.join(path)}: expected a finite number, got {value}")
        case _:
            raise ConfigError(
                f"{'.'.join(path)}: expected text, a number, a list or a section, got {type(value).__name__} "
                f"{show(str(value))}; quote it if it is text"
            )
