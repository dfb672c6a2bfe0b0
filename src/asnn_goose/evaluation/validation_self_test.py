"""`asnn-goose validate --self-test`: the validator tried on spikes whose worth is known, and by what margin.

Perfect spikes have to pass, noise of the same rates has to fail, spikes that come one token late have to be found out,
and a random projection of the teacher has to be found to preserve without having learned. The recorded estimators see
the perfect spikes too, and have to fail them: that is what is wrong with them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from asnn_goose.config_validation import ValidationOptions
from asnn_goose.evaluation.layer_targets import LayerTargets
from asnn_goose.evaluation.recorded_estimators import recorded_estimates
from asnn_goose.evaluation.spike_evidence import SpikeEvidence, rows_of
from asnn_goose.evaluation.spike_validation import compared
from asnn_goose.evaluation.spike_verdicts import sound_verdict
from asnn_goose.evaluation.synthetic_spikes import EXPECTED, KINDS, SITES, Kind, synthetic_observations
from asnn_goose.validation_results import CausalUse
from asnn_goose.validation_verdicts import Criterion, RecordedEstimates

ROWS, TIME = 80, 128
"""Of each synthetic text, the rows of the calibration included."""
LAYERS = LayerTargets(given={0: 0}, made={0: 2})
"""What the synthetic students are made of."""


@dataclass(frozen=True)
class Finding:
    """One criterion on one kind of spikes.

    Attributes:
        kind: Which spikes.
        criterion: What the validator says of them.
        expected: Whether they have to pass it.
    """

    kind: Kind
    criterion: Criterion
    expected: bool

    @property
    def right(self) -> bool:
        """Whether the validator says what is so."""
        return self.criterion.passed == self.expected


@dataclass(frozen=True)
class RecordedFinding:
    """What a recorded estimator says of perfect spikes, and the gate that it fails them by."""

    name: str
    value: float | None
    gate: float

    @property
    def right(self) -> bool:
        """Whether the recorded gate fails perfect spikes, as it is known to."""
        return self.value is not None and self.value <= self.gate


def self_test(options: ValidationOptions) -> list[Finding | RecordedFinding]:
    """Everything that has to be so, and whether it is."""
    options = options.model_copy(update={"window": TIME})
    found: list[Finding | RecordedFinding] = []
    for kind in KINDS:
        criteria = judged(kind, options)
        found += [Finding(kind, criteria[name], expected) for name, expected in EXPECTED[kind].items()]
    recorded = recorded_estimates(synthetic_observations("perfect", options.seed, ROWS, TIME), {0: -1})
    return found + recorded_findings(recorded, options)


def judged(kind: Kind, options: ValidationOptions) -> dict[str, Criterion]:
    """The sound criteria of one kind of spikes, by name; `used` is not measured, for nothing predicts here."""
    own = SpikeEvidence(options, LAYERS, ROWS, levels=1)
    beside = own.beside()
    for seen in synthetic_observations(kind, options.seed, ROWS, TIME):
        own.add(seen)
    calibrating = options.calibration_rows
    for seen in synthetic_observations(kind, options.seed, ROWS, TIME, untrained=True):
        beside.add(rows_of(seen, slice(calibrating, None)))
        calibrating = max(0, calibrating - seen.rows)
    evidence = compared(own.finish(), beside.finish_plain(), None)
    places = [(0, site) for site in SITES]
    verdict = sound_verdict(places, evidence.information, evidence.probes, CausalUse(), options.sound)
    return {criterion.name: criterion for criterion in verdict.criteria}


def recorded_findings(estimates: RecordedEstimates | None, options: ValidationOptions) -> list[RecordedFinding]:
    """The two recorded gates that perfect spikes cannot pass."""
    bits, cka = (None, None) if estimates is None else (estimates.mutual_information_bits, estimates.cka)
    gates = options.gates
    return [
        RecordedFinding("recorded mutual information", bits, gates.mutual_information_bits),
        RecordedFinding("recorded CKA", cka, gates.cka),
    ]


def run_self_test(options: ValidationOptions, console: Console) -> bool:
    """Print each finding with its margin; whether all are as they have to be."""
    with console.status("validating synthetic spikes"):
        found = self_test(options)
    console.print(findings_table(found))
    wrong = sum(not finding.right for finding in found)
    console.print(
        "the validator tells them apart" if not wrong else f"{wrong} findings are wrong: do not trust a verdict"
    )
    return not wrong


def findings_table(found: Iterable[Finding | RecordedFinding]) -> Table:
    """One line a finding."""
    table = Table("spikes", "criterion", "value", "asked for", "has to", "does", "")
    for finding in found:
        mark = "[green]right[/]" if finding.right else "[red]wrong[/]"
        if isinstance(finding, RecordedFinding):
            does = "fail" if finding.right else "pass"
            table.add_row("perfect", finding.name, _shown(finding.value), f"> {finding.gate:g}", "fail", does, mark)
            continue
        criterion = finding.criterion
        wanted, does = ("pass" if passes else "fail" for passes in (finding.expected, criterion.passed))
        kind = finding.kind.replace("_", " ")
        table.add_row(kind, criterion.name, _shown(criterion.value), criterion.threshold, wanted, does, mark)
    return table


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
