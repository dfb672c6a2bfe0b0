"""A run's results on the terminal: figures, samples, and what to try next."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asnn_goose.checks import quotient
from asnn_goose.report.page import format_number, format_percent, measured_controls
from asnn_goose.results import Results
from asnn_goose.run_dir import RunDirectory


def print_results(folder: RunDirectory, console: Console) -> None:
    """Print what a finished run measured and wrote.

    Raises:
        RunFolderError: The folder holds no results that this version reads.
    """
    results = folder.read_results()
    console.print(_figures_table(results))
    protocol = results.protocol
    console.print(
        f"ratio to the teacher {format_number(results.ratio.to_teacher)}, spike density "
        f"{format_number(results.spikes.density)}; protocol {protocol.kind}, window {protocol.window}, "
        f"stride {protocol.stride}, {protocol.tokens:,} tokens",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_speed_line(results), highlight=False, soft_wrap=True)
    for line in _check_lines(results):
        console.print(line, highlight=False, soft_wrap=True)
    if results.samples:
        console.print(_samples_table(results))
    console.print(
        f"run folder {folder.path} \N{MIDDLE DOT} report {folder.report_path}", highlight=False, soft_wrap=True
    )
    for line in _next_steps(folder, results):
        console.print(line, highlight=False, soft_wrap=True)


def _figures_table(results: Results) -> Table:
    table = Table("", "parameters", "perplexity", "to teacher")
    teacher, student = results.teacher, results.student
    before = next(iter(results.curves.perplexity.values), None)
    stages = [(f"student after {stage.name}", stage.perplexity) for stage in results.stages]
    rows = [
        (f"teacher {teacher.name}", f"{teacher.parameters:,}", teacher.perplexity),
        ("student, best", f"{student.parameters:,}", student.perplexity),
        *((name, "", perplexity) for name, perplexity in reversed(stages if len(stages) > 1 else [])),
        ("student before training", "", before),
        *((f"control: {name}", "", perplexity) for name, perplexity in measured_controls(results)),
    ]
    for name, parameters, perplexity in rows:
        ratio = format_number(quotient(perplexity, teacher.perplexity))
        table.add_row(name, parameters, format_number(perplexity), ratio)
    return table


def _check_lines(results: Results) -> tuple[str, ...]:
    """How many checks passed, and each that did not; what the record has of the same version."""
    passed = sum(check.passed for check in results.checks)
    lost = [f"  {check.outcome}: {check.name} {format_number(check.value, 4)}, required {check.required}"
            for check in results.checks if not check.passed]  # fmt: skip
    repeated = results.comparison.repeated
    ratio = None if repeated is None else repeated.ratio_to_teacher
    beside = () if repeated is None else (f"recorded {repeated.version}: {format_number(ratio)}x its teacher's",)
    return (f"checks: {passed} of {len(results.checks)} passed", *lost, *beside)


def _samples_table(results: Results) -> Table:
    table = Table("held-out beginning", "teacher goes on", "student goes on", show_lines=True)
    for sample in results.samples:
        table.add_row(*(Text(" ".join(part.split())) for part in (sample.prompt, sample.teacher, sample.student)))
    return table


def _next_steps(folder: RunDirectory, results: Results) -> tuple[str, ...]:
    return (
        f'next: asnn-goose generate {folder.path} --prompt "One sunny morning,"',
        f"      asnn-goose evaluate {folder.path} --data FILE.txt --teacher {results.teacher.name}",
        f"      asnn-goose distill {results.recipe} data.path=FILE.txt",
    )


def _speed_line(results: Results) -> str:
    throughput = results.throughput
    line = f"trained at {format_number(throughput.tokens_per_second, 0)} tokens/s on {results.hardware.device}"
    return line if throughput.mfu is None else f"{line}, {format_percent(throughput.mfu)} of its peak arithmetic"
