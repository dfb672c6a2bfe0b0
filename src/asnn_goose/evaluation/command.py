"""`asnn-goose evaluate`: any model, any text, one protocol, and a second model on the same windows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import Progress

from asnn_goose.config_text import PocketText, Protocol, PydocText, RecordedProtocol, StandardProtocol
from asnn_goose.data.documents import document_separator
from asnn_goose.data.local_text import local_documents
from asnn_goose.data.text import held_out_source, load_text
from asnn_goose.errors import DataError
from asnn_goose.evaluation.perplexity import EvaluationWindows, evaluation_windows, measure_perplexity
from asnn_goose.models.build import check_windows
from asnn_goose.models.loading import LoadedModel, load_causal_lm
from asnn_goose.models.teacher import body_hidden_states, check_same_vocabulary, output_head
from asnn_goose.presets import load_recipe

BATCH_TOKENS = 2048
BUILT_IN_TEXTS: dict[str, PydocText | PocketText] = {"pydoc": PydocText(), "pocket": PocketText()}
"""Texts that have a name instead of a path."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What `evaluate` was asked for; None takes the run's own choice, or the default."""

    model: str
    data: str | None
    teacher: str | None
    window: int | None
    tokens: int | None
    protocol: Literal["standard", "recorded"] | None
    dtype: str = "float32"


@dataclass(frozen=True)
class EvaluationRow:
    """One model's figures."""

    name: str
    parameters: int
    perplexity: float
    loss_nats: float


@dataclass(frozen=True)
class EvaluationReport:
    """Figures of one or two models and the protocol they share."""

    rows: tuple[EvaluationRow, ...]
    protocol: str
    scored_tokens: int

    @property
    def ratio(self) -> float | None:
        """First model's perplexity over the second's."""
        return self.rows[0].perplexity / self.rows[1].perplexity if len(self.rows) == 2 else None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        models = [vars(row) for row in self.rows]
        return {
            "models": models,
            "ratio": self.ratio,
            "protocol": self.protocol,
            "scored_tokens": self.scored_tokens,
        }


def evaluate_models(request: EvaluationRequest, console: Console) -> EvaluationReport:
    """Measure the models a request names.

    Raises:
        GooseError: A model or text that cannot be loaded, or two vocabularies.
    """
    text = evaluation_text(request)
    dtype: torch.dtype = getattr(torch, request.dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = [load_causal_lm(name, dtype, device) for name in (request.model, request.teacher) if name is not None]
    if len(models) == 2:
        check_same_vocabulary(models[1], models[0])
    windows = evaluation_windows(text, models[0].tokenizer, requested_protocol(request))
    for loaded in models:
        check_windows(loaded, {"--window": windows.rows.window})
    rows = tuple(_measure(loaded, windows, console) for loaded in models)
    statement = f"{windows.statement}; {request.dtype}; tokenizer of {models[0].name}"
    return EvaluationReport(rows, statement, windows.scored_tokens)


def requested_protocol(request: EvaluationRequest) -> Protocol:
    """The protocol asked for, its gaps filled from the run's recipe if the model is a run folder."""
    base: Protocol = StandardProtocol()
    if is_run_folder(request.model):
        base = load_recipe(str(Path(request.model) / "config.yaml"), []).evaluation
    if request.protocol is not None and request.protocol != base.kind:
        base = StandardProtocol() if request.protocol == "standard" else RecordedProtocol()
    changes = {"window": request.window, "tokens": request.tokens}
    if request.data is not None and request.tokens is None:
        # A token limit belongs to the run's own text; another text is read whole.
        base = base.model_copy(update={"tokens": None})
    return base.model_copy(update={key: value for key, value in changes.items() if value is not None})


def evaluation_text(request: EvaluationRequest) -> str:
    """The text to score: the one given, whole, or the held-out text of the run the model comes from.

    Raises:
        DataError: No text was given and the model is not a run folder.
    """
    if request.data in BUILT_IN_TEXTS:
        splits = load_text(BUILT_IN_TEXTS[request.data], seed=0)
        return splits.separator.join(splits.held_out)
    if request.data is not None:
        documents = local_documents(Path(request.data), "text", None)
        return document_separator(documents, None).join(documents)
    if not is_run_folder(request.model):
        raise DataError(
            f"{request.model} is no run folder and has no text of its own: give --data FILE (or pocket, or pydoc)"
        )
    recipe = load_recipe(str(Path(request.model) / "config.yaml"), [])
    splits = load_text(held_out_source(recipe.data), recipe.training.seed)
    return splits.separator.join(splits.held_out)


def _measure(loaded: LoadedModel, windows: EvaluationWindows, console: Console) -> EvaluationRow:
    head = output_head(loaded.model, loaded.name)
    batch_size = max(BATCH_TOKENS // windows.rows.window, 1)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"windows, {loaded.name}", total=len(windows.rows))
        result = measure_perplexity(
            lambda ids: body_hidden_states(loaded.model.base_model, ids),
            head,
            windows,
            batch_size,
            lambda done: progress.update(task, completed=done),
        )
    return EvaluationRow(loaded.name, int(loaded.model.num_parameters()), result.perplexity, result.loss_nats)


def is_run_folder(name: str) -> bool:
    """Whether a model's name is that of a run folder."""
    return (Path(name) / "config.yaml").is_file()
