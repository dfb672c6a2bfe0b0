"""`asnn-goose validate`: a trained student, its teacher and a text, from their names to validation.json and figures."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from asnn_goose.config_text import StandardProtocol
from asnn_goose.config_validation import ValidationOptions
from asnn_goose.errors import ConfigError
from asnn_goose.evaluation.command import EvaluationRequest, evaluation_text, is_run_folder
from asnn_goose.evaluation.perplexity import evaluation_windows
from asnn_goose.evaluation.spike_validation import OnProgress, SpikeValidation
from asnn_goose.models.build import check_windows
from asnn_goose.models.loading import LoadedModel, load_causal_lm
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.teacher import check_same_vocabulary, make_teacher
from asnn_goose.presets import load_recipe
from asnn_goose.report.validation_figures import save_validation_figures
from asnn_goose.validation_results import ValidationResults

DEFAULT_TOKENS = 16_384
"""Leading tokens of the text that are looked at unless it is said how many."""
RESULTS_NAME = "validation.json"
LINE_SECONDS = 10.0
"""Away from a terminal a line is shown that often."""


@dataclass(frozen=True)
class ValidationRequest:
    """What `validate` was asked for; None takes the run's own choice, or the default."""

    model: str
    data: str | None = None
    teacher: str | None = None
    dense_twin: str | None = None
    tokens: int | None = None
    out: Path | None = None


def validate_model(request: ValidationRequest, options: ValidationOptions, console: Console) -> ValidationResults:
    """Validate a student and write what was found into a folder.

    Raises:
        GooseError: A model or text that cannot be loaded, a model that is no student or does not spike, two
            vocabularies, or too little text.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_causal_lm(request.model, torch.float32, device)
    student = checked_student(loaded)
    teacher = load_causal_lm(teacher_name(request, student), torch.float32, device)
    check_same_vocabulary(teacher, loaded)
    twin = None if request.dense_twin is None else load_causal_lm(request.dense_twin, torch.float32, device)
    if twin is not None:
        check_same_vocabulary(teacher, twin)
    text = evaluation_text(EvaluationRequest(request.model, request.data, None, None, None, None))
    protocol = StandardProtocol(window=options.window, tokens=request.tokens or DEFAULT_TOKENS)
    windows = evaluation_windows(text, loaded.tokenizer, protocol)
    for model in (loaded, teacher):
        check_windows(model, {"validation.window": options.window})
    rows = torch.from_numpy(windows.rows.take(np.arange(len(windows.rows))))
    with shown_progress(console) as on_progress:
        outcome = SpikeValidation(options=options).run(
            student,
            make_teacher(teacher),
            [rows],
            max_batches=None,
            dense_twin=None if twin is None else checked_student(twin, has_spikes=False),
            names=(request.model, request.data or "the run's own held-out text"),
            on_progress=on_progress,
        )
    write_validation(outcome.results, output_folder(request))
    return outcome.results


@contextmanager
def shown_progress(console: Console) -> Iterator[OnProgress]:
    """Gives what is told how far a validation is; shows a bar, or away from a terminal lines now and then."""
    started = shown = time.monotonic()
    before = ""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=None)

        def advance(doing: str, done: int, of: int) -> None:
            """Show it: every beginning, and where it stands ten seconds after the last line."""
            nonlocal before, shown
            progress.update(task, description=doing, completed=done, total=of)
            now = time.monotonic()
            if not console.is_terminal and (doing != before or now - shown >= LINE_SECONDS):
                console.print(f"{now - started:.0f} s: {doing}, {done} of {of}", highlight=False)
                before, shown = doing, now

        yield advance


def checked_student(loaded: LoadedModel, has_spikes: bool = True) -> GooseForCausalLM:
    """The student that was loaded.

    Raises:
        ConfigError: It is none, or should spike and does not.
    """
    student = loaded.model
    if not isinstance(student, GooseForCausalLM):
        raise ConfigError(f"{loaded.name} is a {type(student).__name__}, not a student: give a run folder of distill")
    if has_spikes and not (student.config.spikes or {}).get("sites"):
        raise ConfigError(
            f"{loaded.name} has no spikes to validate: it is a dense twin; train with spikes.sites=recorded or all"
        )
    return student


def teacher_name(request: ValidationRequest, student: GooseForCausalLM) -> str:
    """The teacher that was asked for, that of the run, or the one that the student's configuration names.

    Raises:
        ConfigError: None of them.
    """
    if request.teacher is not None:
        return request.teacher
    if is_run_folder(request.model):
        return load_recipe(str(Path(request.model) / "config.yaml"), []).teacher.name
    if student.config.teacher_name is None:
        raise ConfigError(f"{request.model} does not say who taught it: give --teacher NAME")
    return str(student.config.teacher_name)


def output_folder(request: ValidationRequest) -> Path:
    """Where the results go: the folder asked for, `validation` in the run folder, or `validation-NAME` here."""
    if request.out is not None:
        return request.out
    if is_run_folder(request.model):
        return Path(request.model) / "validation"
    return Path(f"validation-{Path(request.model).name}")


def write_validation(results: ValidationResults, folder: Path) -> None:
    """validation.json and its figures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS_NAME).write_text(results.to_json(), encoding="utf-8")
    save_validation_figures(results, folder)
