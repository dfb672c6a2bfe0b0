"""A validation of spikes on the terminal: what it says of them first, then what that rests on."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from asnn_goose.report.page import NOT_MEASURED, format_percent
from asnn_goose.validation_results import (
    CausalUse,
    MatchedSimilarity,
    SiteHealth,
    SiteInformation,
    SiteProbe,
    ValidationResults,
)
from asnn_goose.validation_verdicts import Gate, SoundVerdict

PASSED, FAILED = "[green]holds[/]", "[red]fails[/]"
EMBEDDINGS = -1
"""Number of the teacher's block that stands for what its first one is given."""


def print_validation(results: ValidationResults, console: Console) -> None:
    """Print both verdicts and the figures behind them; a section that nothing was measured for is left out."""
    text = results.text
    _say(
        console,
        f"spikes of {results.model} against {results.teacher}: {text.tokens:,} tokens of {text.description}, "
        f"{text.rows:,} rows of {text.window}",
    )
    console.print(verdict_table(results.sound_verdict))
    _say(console, _verdict_line(results.sound_verdict))
    if results.causal.replacements:
        console.print(causal_table(results.causal))
    for table, entries in (
        (probe_table(results.probes), results.probes),
        (information_table(results.information), results.information),
        (similarity_table(results.representation.matched), results.representation.matched),
        (health_table(results.health), results.health),
    ):
        if entries:
            console.print(table)
    console.print(gate_table(results.recorded_verdict.gates))
    _say(console, f"recorded gates: {_outcome(results.recorded_verdict.passed)} by sound estimates; they judge nothing")


def verdict_table(verdict: SoundVerdict) -> Table:
    """Each criterion: what was measured, what it has to be, what that means and which site decides."""
    table = Table(
        "criterion", "measured", "asked for", "", "holds means", "where", title="Sound verdict", title_justify="left"
    )
    for criterion in verdict.criteria:
        mark = PASSED if criterion.passed else FAILED
        table.add_row(
            criterion.name, _figure(criterion.value), criterion.threshold, mark, criterion.meaning, criterion.note
        )
    return table


def causal_table(causal: CausalUse) -> Table:
    """The student's perplexity with each site's spikes replaced, over that of the untouched one."""
    ways = list(dict.fromkeys(entry.replacement for entry in causal.replacements))
    ratios = {(entry.site, entry.replacement): entry.ratio for entry in causal.replacements}
    table = Table(
        "replaced at", *(way.replace("_", " ") for way in ways), title_justify="left",
        title=f"Perplexity once spikes are replaced, over {_figure(causal.perplexity)} untouched "
        f"({causal.tokens:,} tokens)",
    )  # fmt: skip
    for site in dict.fromkeys(entry.site for entry in causal.replacements):
        table.add_row(site, *(_figure(ratios.get((site, way))) for way in ways))
    return table


def probe_table(probes: Sequence[SiteProbe]) -> Table:
    """What all channels of each site tell together: the figures that `learned` and `kept` are made of."""
    table = Table(
        "site", "teacher's", "spikes", "activations", "kept", "untrained", "highest control", "dense twin", "of",
        title="Bits that a probe proves on rows it was not fitted to (a lower bound)", title_justify="left",
    )  # fmt: skip
    for entry in probes:
        table.add_row(
            _site(entry),
            _taught(entry.teacher_layer),
            *map(_figure, (entry.spikes_bits, entry.preactivation_bits)),
            _share(entry.kept_share),
            _figure(entry.untrained_bits),
            _highest_control(entry.controls),
            _figure(entry.dense_twin_bits),
            _figure(entry.target_entropy_bits),
        )
    return table


def information_table(information: Sequence[SiteInformation]) -> Table:
    """What single channels tell, beside what the same estimate says where there is nothing to know."""
    table = Table(
        "site", "teacher's", "spikes", "null", "p", "untrained", "highest control", "activations", "kept",
        "best lag", title="Bits of a channel about the teacher's component it tells most of", title_justify="left",
    )  # fmt: skip
    for entry in information:
        table.add_row(
            _site(entry),
            _taught(entry.teacher_layer),
            *map(_figure, (entry.spikes_bits, entry.null.mean_bits, entry.null.p, entry.untrained_bits)),
            _highest_control(entry.controls),
            _figure(entry.preactivation_bits),
            _share(entry.kept_share),
            NOT_MEASURED if entry.best_lag is None else f"{entry.best_lag:+d}" if entry.best_lag else "0",
        )
    return table


def similarity_table(matched: Sequence[MatchedSimilarity]) -> Table:
    """Debiased CKA of what is matched, beside the untrained student's, which sets the bar."""
    table = Table(
        "what", "teacher's", "CKA", "untrained", "highest control", "dense twin",
        title="Debiased CKA with the teacher", title_justify="left",
    )  # fmt: skip
    for entry in matched:
        table.add_row(
            f"layer_{entry.layer}.{entry.what}",
            _taught(entry.teacher_layer),
            *map(_figure, (entry.cka, entry.untrained_cka)),
            _highest_control(entry.controls),
            _figure(entry.dense_twin_cka),
        )
    return table


def health_table(health: Sequence[SiteHealth]) -> Table:
    """How channels spike."""
    table = Table(
        "site", "rate", "dead", "saturated", "never", "sign balance", "entropy bits", "events", "flicker",
        title="Health of channels", title_justify="left",
    )  # fmt: skip
    for entry in health:
        shares = (entry.rate, entry.dead_fraction, entry.saturated_fraction, entry.silent_channel_fraction)
        figures = (entry.sign_balance, entry.entropy_bits, entry.events_per_activation, entry.flicker)
        table.add_row(_site(entry), *map(_share, shares), *map(_figure, figures))
    return table


def gate_table(gates: Sequence[Gate]) -> Table:
    """The recorded gates by sound estimates, and by the recorded estimators where these were computed."""
    recorded = {gate.name: gate for gate in gates if gate.estimator == "recorded"}
    table = Table("gate", "asked for", "by sound estimates", "", title="Recorded gates (v15)", title_justify="left")
    if recorded:
        table.add_column("by the recorded estimators")
        table.add_column("")
    for gate in gates:
        if gate.estimator == "sound":
            beside = [recorded[gate.name]] if gate.name in recorded else []
            cells = [cell for found in (gate, *beside) for cell in (_figure(found.value), _mark(found.passed))]
            table.add_row(gate.name, gate.threshold, *cells)
    return table


def _verdict_line(verdict: SoundVerdict) -> str:
    lost = [criterion.name for criterion in verdict.criteria if not criterion.passed]
    if verdict.passed:
        return "sound verdict: passed; the spikes carry, by training, what the student uses"
    return f"sound verdict: failed; not {', not '.join(lost) or 'judged'}"


def _outcome(passed: bool) -> str:
    return "passed" if passed else "failed"


def _mark(passed: bool) -> str:
    return PASSED if passed else FAILED


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _site(entry: SiteHealth | SiteInformation | SiteProbe) -> str:
    return f"layer_{entry.layer}.{entry.site}"


def _taught(layer: int) -> str:
    return "embeddings" if layer == EMBEDDINGS else f"block {layer}"


def _highest_control(controls: Mapping[str, float | None]) -> str:
    """The control that says most where least should be said; all of them are in validation.json."""
    measured = {name: value for name, value in controls.items() if value is not None}
    if not measured:
        return NOT_MEASURED
    name = max(measured, key=lambda control: measured[control])
    return f"{_figure(measured[name])} {name.replace('_', ' ')}"


def _figure(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:,.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"


def _share(value: float | None) -> str:
    return format_percent(value)
