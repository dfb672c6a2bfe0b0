"""A recipe at another size: the same method on a laptop, or with a larger teacher, by rules instead of lists.

`scale=pocket` takes the pocket teacher and its text, a quarter of the width, a twenty-fifth of all that counts in steps
and ten times the rate: at the recorded one v9 is at 89 times its teacher's perplexity after 108 steps. `scale=smollm2`
takes another teacher and leaves sizes and steps as they are. Either way a student whose spikes are compared with its
teacher's channels is as wide as that teacher. What is a rule already, such as which layers are compared, stays. The
rules apply where a recipe is asked for at a scale; a resolved recipe, whose numbers are those of its scale, only says
which that was.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from asnn_goose.errors import ConfigError

SCALES = ("full", "pocket", "smollm2")
STEP_DIVISOR = 25
"""Steps of a full run for one at pocket scale."""
RATE_FACTOR = 10
WIDTH_DIVISOR, LEAST_WIDTH = 4, 32
LEAST_LOGGING = 10
"""Steps between two logs, each of which probes the spikes."""
TEACHER_WIDTHS = {"pocket": 256, "smollm2": 576}
"""Of the scales' teachers: spikes that are to mean what a teacher's channels do are as many as these."""
POCKET_TOKENS = 8_192
"""Held-out tokens that a run at pocket scale is judged on."""
POCKET_BATCHES = 16
"""Batches whose difficulty a curriculum measures there."""
STEP_KEYS = (
    ("training", "steps"),
    ("training", "warmup_steps"),
    ("training", "logging_interval"),
    ("training", "evaluation_interval"),
    ("training", "checkpoint_interval"),
    ("training", "early_stopping", "patience_steps"),
    ("objective", "hidden_alignment", "introduce_steps"),
    ("objective", "feature_dynamics", "warmup_steps"),
    ("objective", "semantic", "begin_step"),
    ("objective", "semantic", "full_step"),
    ("curriculum", "pretraining", "steps"),
)
"""What counts in steps; 0 stays 0."""


def scaled_recipe(recipe: Mapping[str, Any], scale: Any) -> dict[str, Any]:
    """A copy of a recipe's mapping at a scale, which it then names.

    Raises:
        ConfigError: No such scale, or a recipe whose budget is not in steps or whose student has its teacher's shape.
    """
    if scale not in SCALES:
        raise ConfigError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
    made = deepcopy(dict(recipe)) | {"scale": scale}
    if scale == "full":
        return made
    if made.get("student", {}).get("mixer", "wkv") != "wkv" or "steps" not in made.get("training", {}):
        raise ConfigError(
            f"scale={scale} is for recipes of a wkv student and a budget in steps, such as v6 to v15r: take another "
            "recipe (`asnn-goose presets` lists them), or set teacher.name, data and training by themselves"
        )
    # Half precision with a scaler is what the recorded machines had; whoever has neither takes what is fastest.
    made["training"]["precision"] = "auto"
    made["teacher"] = {"name": scale}
    if scale == "pocket":
        _make_pocket(made)
    if made.get("objective", {}).get("semantic") is not None:
        made["student"]["width"] = TEACHER_WIDTHS[scale]
    return made


def _make_pocket(made: dict[str, Any]) -> None:
    rows = made.get("data", {}).get("rows")
    made["data"] = {"name": "pocket"} | ({} if rows is None else {"rows": rows})
    student = made.setdefault("student", {})
    student["width"] = max(LEAST_WIDTH, student.get("width", 768) // WIDTH_DIVISOR)
    if student.get("feedforward_width"):
        student["feedforward_width"] = max(LEAST_WIDTH, student["feedforward_width"] // WIDTH_DIVISOR)
    for path in STEP_KEYS:
        section: Any = made
        for key in path[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and section.get(path[-1]):
            section[path[-1]] = max(1, round(section[path[-1]] / STEP_DIVISOR))
    training = made["training"]
    training["logging_interval"] = max(LEAST_LOGGING, training.get("logging_interval", LEAST_LOGGING))
    training["learning_rate"] = RATE_FACTOR * training.get("learning_rate", 3e-4)
    curriculum = made.get("curriculum")
    if isinstance(curriculum, dict):
        curriculum["batches"] = POCKET_BATCHES
        if isinstance(curriculum.get("pretraining"), dict):
            curriculum["pretraining"]["learning_rate"] = RATE_FACTOR * curriculum["pretraining"]["learning_rate"]
    made["evaluation"] = made.get("evaluation", {}) | {"tokens": POCKET_TOKENS}
