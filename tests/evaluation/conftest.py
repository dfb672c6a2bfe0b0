"""A made-up run as its checks see it."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from asnn_goose.config import Recipe
from asnn_goose.evaluation.encoder_evidence import EncoderEvidence
from asnn_goose.evaluation.run_evidence import RunEvidence
from asnn_goose.measurements import Curve, Curves
from asnn_goose.results import Counters, ModelResult, Protocol, Ratio, Results, SpikeResult, Stage

SOUND_ENCODERS = EncoderEvidence(True, 3, 0, 1.5, 10, (0.74, 1.08), 0.01)


@pytest.fixture(scope="session")
def make_evidence() -> Callable[..., RunEvidence]:
    """Makes a run: `perplexities` of student and teacher, metrics by key, and changes to recipe and results."""

    def make(
        version: str | None = None,
        perplexities: tuple[float | None, float | None] = (300.0, 44.6),
        teacher: str = "gpt2",
        protocol: str = "recorded",
        metrics: dict[str, list[float | None]] | None = None,
        training: dict[str, Any] | None = None,
        counters: dict[str, Any] | None = None,
        evaluations: tuple[tuple[int, float | None], ...] = (),
        stages: tuple[int, ...] = (),
        density: float | None = 0.38,
        encoders: dict[str, Any] | None = None,
        reloaded: float | None = None,
    ) -> RunEvidence:
        recipe = {"data": {"name": "pocket"}, "training": {"steps": 100, **(training or {})}, "recorded": version}
        student, taught = perplexities
        steps, values = tuple(zip(*evaluations, strict=True)) or ((), ())
        results = Results(
            version="0", recipe="r", recipe_hash="0", seed=1, platform="local", stop_reason="budget",
            protocol=Protocol(kind=protocol, tokenizer="gpt2", window=256, stride=128, tokens=1024),
            teacher=ModelResult(name=teacher, perplexity=taught), student=ModelResult(perplexity=student),
            ratio=Ratio(to_teacher=student / taught if student and taught else None),
            spikes=SpikeResult(density=density), counters=Counters(**{"steps_done": 100, **(counters or {})}),
            stages=tuple(Stage(name=str(place), steps=steps) for place, steps in enumerate(stages)),
            curves=Curves(perplexity=Curve(steps=steps, values=values)),
        )  # fmt: skip
        lines = [
            {"step": step, key: value} for key, values in (metrics or {}).items() for step, value in enumerate(values)
        ]
        seen = replace(SOUND_ENCODERS, **(encoders or {}))
        return RunEvidence(Recipe.model_validate_json(json.dumps(recipe)), results, lines, seen, 50_257, reloaded)

    return make
