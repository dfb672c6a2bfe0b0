"""`asnn-goose validate`: whether a student's spikes carry what it learned."""

from pathlib import Path
from typing import Annotated

import typer

from asnn_goose.cli_shared import EXIT_BAD_INPUT, EXIT_CHECK_FAILED, importing, make_console, quiet_libraries
from asnn_goose.config_validation import ValidationOptions


def validate(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Run folder, model directory or hub id of a student.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Text file or folder, `pocket`, or `pydoc`; default the run's own.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Model it is compared with; default the run's own.")] = None,
    dense_twin: Annotated[str | None, typer.Option(help="The same student trained without spikes.")] = None,
    tokens: Annotated[int | None, typer.Option(min=2, help="Leading tokens of the text; default 16,384.")] = None,
    window: Annotated[int, typer.Option(min=8, help="Tokens of a row.")] = 256,
    permutations: Annotated[int, typer.Option(min=19, help="Permutations of rows that make the null.")] = 199,
    seed: Annotated[int, typer.Option(min=0, help="Of permutations, controls and the untrained student.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of validation.json and figures.")] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Validate spikes whose worth is known, in place of a model's.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 1 if the sound verdict fails.")] = False,
) -> None:
    """Prove, or refute, that a student's spikes carry information."""
    if (model is None) != self_test:
        typer.echo("error: give a MODEL, or --self-test without one", err=True)
        raise typer.Exit(EXIT_BAD_INPUT)
    quiet_libraries()
    options = ValidationOptions(window=window, permutations=permutations, seed=seed)
    console = make_console()
    if model is None:
        with importing():
            from asnn_goose.evaluation.validation_self_test import run_self_test

        if not run_self_test(options, console):
            raise typer.Exit(EXIT_CHECK_FAILED)
        return
    with importing():
        from asnn_goose.evaluation.validation_command import ValidationRequest, output_folder, validate_model
        from asnn_goose.report.validation_tables import print_validation

    request = ValidationRequest(model, data, teacher, dense_twin, tokens, out)
    results = validate_model(request, options, make_console(stderr=True))
    print_validation(results, console)
    console.print(f"written to {output_folder(request)}", highlight=False)
    if strict and not results.sound_verdict.passed:
        raise typer.Exit(EXIT_CHECK_FAILED)
