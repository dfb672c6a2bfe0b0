"""The command line: `asnn-goose COMMAND`. Heavy libraries load inside the commands, so help comes at once."""

import json
import logging
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from asnn_goose.cli_shared import (
    EXIT_BAD_INPUT,
    EXIT_CHECK_FAILED,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    ModelArgument,
    importing,
    make_console,
    quiet_libraries,
)
from asnn_goose.cli_validate import validate
from asnn_goose.environment import collect_environment
from asnn_goose.errors import GooseError
from asnn_goose.presets import load_recipe, recipe_name, recipe_names, recipe_schema, recipe_yaml
from asnn_goose.report.recorded_table import our_runs, rich_table
from asnn_goose.report.terminal import print_results
from asnn_goose.run_dir import (
    RunDirectory,
    default_run_path,
    newest_unfinished,
)

RUNS_ROOT = Path("runs")
# typer brings a click of its own in some versions and imports the package in others; this is the base it raises.
ClickError: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

app = typer.Typer(
    name="asnn-goose",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Turn a pretrained transformer language model into a spiking recurrent student.",
    epilog="Start with: asnn-goose distill quickstart",
)


@app.command(epilog="Example: asnn-goose distill quickstart data.path=book.txt training.steps=200 --out runs/book")
def distill(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `presets`) or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Changes to the recipe.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/RECIPE-DATE.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out, or with the newest unfinished run of the recipe.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 1 if a check failed.")] = False,
) -> None:
    """Distill a teacher into a spiking student."""
    resolved = load_recipe(recipe, overrides or [])
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        folder, console = _run_folder(recipe, resolved, out, resume), make_console()
    else:
        # Of several processes the main one alone makes the folder and speaks.
        quiet_libraries()
        with importing():
            from asnn_goose.training.distributed import decided_by_main, main_console

        folder = decided_by_main(lambda: _run_folder(recipe, resolved, out, resume))
        console = main_console(make_console())
    if folder.is_finished:
        console.print(f"{folder.path} is finished already")
        _tell_results(folder, console, strict)
        return
    quiet_libraries()
    with importing():
        from asnn_goose.training.distill import distill as run_distillation

    console.print(f"run folder {folder.path}", highlight=False)
    try:
        outcome = run_distillation(resolved, folder, console)
    except GooseError:
        if not resume and os.environ.get("RANK", "0") == "0":
            folder.discard_if_empty()
        raise
    if outcome.results is None:
        command = " ".join(["asnn-goose distill", recipe, *(overrides or []), "--out", str(folder.path), "--resume"])
        console.print(f"interrupted, state saved; go on with: {command}", highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED)
    _tell_results(folder, console, strict)


@app.command(epilog="Example: asnn-goose evaluate runs/quickstart-20260101-120000 --data book.txt --teacher smollm2")
def evaluate(
    model: ModelArgument,
    data: Annotated[
        str | None, typer.Option(help="Text file or folder, `pocket`, or `pydoc`; default the run's own.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Second model measured on the same windows.")] = None,
    window: Annotated[int | None, typer.Option(min=2, help="Tokens a window holds; default 256.")] = None,
    tokens: Annotated[int | None, typer.Option(min=2, help="Leading tokens of the text; default all.")] = None,
    protocol: Annotated[
        Literal["standard", "recorded"] | None, typer.Option(help="How the text is cut into windows.")
    ] = None,
    dtype: Annotated[Literal["float32", "bfloat16", "float64"], typer.Option(help="Number type.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Measure perplexity under one printed protocol."""
    quiet_libraries()
    with importing():
        from asnn_goose.evaluation.command import EvaluationRequest, evaluate_models

    request = EvaluationRequest(model, data, teacher, window, tokens, protocol, dtype)
    report = evaluate_models(request, make_console(stderr=True))
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
        return
    table = Table("model", "parameters", "perplexity", "loss, nats per token")
    for row in report.rows:
        table.add_row(row.name, f"{row.parameters:,}", f"{row.perplexity:,.3f}", f"{row.loss_nats:.4f}")
    make_console().print(table)
    if report.ratio is not None:
        make_console().print(f"ratio to {report.rows[-1].name}: {report.ratio:.3f}", highlight=False)
    make_console().print(f"protocol: {report.protocol}", highlight=False, soft_wrap=True)


app.command(epilog="Example: asnn-goose validate runs/quickstart-20260101-120000")(validate)


@app.command(epilog='Example: asnn-goose generate runs/quickstart-20260101-120000 --prompt "The file is" --greedy')
def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Option(help="Text to continue; `-` reads standard input.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.01, help="Sampling temperature.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0, help="Nucleus of the distribution sampled from.")] = 0.95,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token each time.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
) -> None:
    """Continue a prompt."""
    quiet_libraries()
    with importing():
        from asnn_goose.inference.generation import SamplingOptions, continue_prompt

    text = sys.stdin.read() if prompt == "-" else prompt
    options = SamplingOptions(max_new_tokens, temperature, top_p, greedy, seed)
    typer.echo(continue_prompt(model, text, options))


@app.command(epilog="Example: asnn-goose presets quickstart > my.yaml")
def presets(
    name: Annotated[str | None, typer.Argument(help="Recipe to print; without it all are listed.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a recipe.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Print what is recorded of each version of the line.")] = False,
    runs: Annotated[
        Path | None, typer.Option(help="With --table: folder of runs whose ratios stand beside the recorded ones.")
    ] = None,
) -> None:
    """List the shipped recipes, or print one resolved to its last field."""
    if schema:
        typer.echo(json.dumps(recipe_schema(), indent=2))
        return
    if table or runs is not None:
        make_console().print(rich_table(None if runs is None else our_runs(runs)))
        return
    if name is not None:
        typer.echo(recipe_yaml(load_recipe(name, overrides or [])), nl=False)
        return
    listed = Table("recipe", "teacher", "what it is for")
    for entry in recipe_names():
        shipped = load_recipe(entry, [])
        listed.add_row(entry, shipped.teacher.name, shipped.description)
    make_console().print(listed)


@app.command(epilog="Example: asnn-goose doctor")
def doctor() -> None:
    """Check the machine: versions, kernels, speed, space, and whether the hub answers."""
    quiet_libraries()
    with importing():
        from asnn_goose.doctor import examine_machine

    findings = examine_machine()
    table = Table("check", "finding", "")
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "failed": "[red]failed[/]"}
    for finding in findings:
        table.add_row(finding.name, finding.text, marks[finding.verdict])
    make_console().print(table)
    if any(finding.verdict == "failed" for finding in findings):
        raise typer.Exit(EXIT_CHECK_FAILED)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log what is chosen and why.")] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    handler = RichHandler(console=make_console(stderr=True), show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("asnn_goose").setLevel(level)
    if version:
        from asnn_goose import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; a user's error is one line and exit code 2, anything else keeps its traceback."""
    try:
        code = app(standalone_mode=False)
    except GooseError as error:
        code = _complain(str(error))
    except ClickError as error:
        code = _explain_usage(error)
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("interrupted", err=True)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_DONE
    sys.exit(code if isinstance(code, int) else EXIT_DONE)


def _explain_usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message())
        return EXIT_BAD_INPUT
    return _complain(f"{error.format_message()} (see `asnn-goose --help`)")


def _complain(message: str) -> int:
    one_line = " ".join(message.split())
    typer.echo(f"error: {one_line}", err=True)
    return EXIT_BAD_INPUT


def _run_folder(recipe: str, resolved: Any, out: Path | None, resume: bool) -> RunDirectory:
    name = recipe_name(recipe)
    if resume:
        return _resumed_folder(name, out, resolved)
    path = out or default_run_path(RUNS_ROOT, name, datetime.now())
    environment = {"recipe": name, **collect_environment(resolved.training.seed)}
    return RunDirectory.create(path, recipe_yaml(resolved), environment)


def _resumed_folder(name: str, out: Path | None, resolved: Any) -> RunDirectory:
    if out is not None:
        folder = RunDirectory.open(out)
    else:
        newest = newest_unfinished(RUNS_ROOT, name)
        if newest is None:
            raise GooseError(f"no unfinished run of {name} under {RUNS_ROOT}/: drop --resume, or name one with --out")
        folder = newest
    folder.check_same_recipe(recipe_yaml(resolved))
    return folder


def _tell_results(folder: RunDirectory, console: Console, strict: bool) -> None:
    """Print what a run measured; with `strict`, a check that failed and is more than a warning ends in exit code 1."""
    print_results(folder, console)
    if strict and any(check.outcome == "failed" for check in folder.read_results().checks):
        raise typer.Exit(EXIT_CHECK_FAILED)
