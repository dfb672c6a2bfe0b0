"""Validates a student's spikes against its teacher: whether they are informative, learned, kept, used and aligned.

outcome = SpikeValidation(layer_map={0: 2, 2: 7, 4: 11}).run(student, teacher, batches, max_batches=20)
outcome.summary
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from asnn_goose.config_validation import ValidationOptions
from asnn_goose.errors import ConfigError, DataError
from asnn_goose.evaluation.layer_targets import LayerTargets, layer_targets
from asnn_goose.evaluation.observation import Observation
from asnn_goose.evaluation.observe import (
    default_batch_rows,
    encoders_by_place,
    has_spikes,
    observe_beside,
    observe_teacher,
    passes,
)
from asnn_goose.evaluation.recorded_estimators import RecordedEvidence
from asnn_goose.evaluation.spike_causality import SpikeUse, causal_use
from asnn_goose.evaluation.spike_evidence import Evidence, PlainEvidence, SpikeEvidence, check_rows
from asnn_goose.evaluation.spike_verdicts import recorded_verdict, sound_estimates, sound_verdict
from asnn_goose.evaluation.untrained import untrained_student
from asnn_goose.information.controls import forget_draws
from asnn_goose.measurements import Record
from asnn_goose.models.anatomy import teacher_anatomy
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.teacher import Teacher
from asnn_goose.validation_results import CausalUse, Replacement, TextFacts, ValidationResults
from asnn_goose.validation_verdicts import RecordedEstimates

Entry = TypeVar("Entry", bound=Record)
OnProgress = Callable[[str, int, int], None]
"""Is told what is being done, how many parts of it are done, and of how many; one call at a time, from any thread."""


@dataclass(frozen=True)
class ValidationOutcome:
    """What a validation found.

    Attributes:
        results: Everything, as validation.json holds it.
    """

    results: ValidationResults

    @property
    def summary(self) -> dict[str, float | bool | None]:
        """Both verdicts, and what decides them, in a few numbers."""
        sound, recorded = self.results.sound_verdict, self.results.recorded_verdict
        figures: dict[str, float | bool | None] = {"passed": sound.passed, "recorded_gates_passed": recorded.passed}
        return figures | {criterion.name: criterion.value for criterion in sound.criteria}


class SpikeValidation:
    """Validation of any student of any teacher that shares its vocabulary.

    Args:
        layer_map: By the student's block, the teacher's block whose output its own stands for, both from 0; only these
            blocks are looked at. None looks at all, by depth.
        options: How much is looked at, and what has to hold.
    """

    def __init__(self, layer_map: Mapping[int, int] | None = None, options: ValidationOptions | None = None) -> None:
        self._layer_map, self._options = layer_map, options or ValidationOptions()

    def run(
        self,
        student: GooseForCausalLM,
        teacher: Teacher,
        batches: Iterable[Int[Tensor, "batch time"]],
        max_batches: int | None = 20,
        dense_twin: GooseForCausalLM | None = None,
        names: tuple[str, str] = ("student", "given rows"),
        on_progress: OnProgress = lambda doing, done, of: None,
    ) -> ValidationOutcome:
        """Look at the student, at one that has learned nothing, and at what replacing spikes does.

        Args:
            student: Has to spike somewhere.
            teacher: Of the same vocabulary.
            batches: Token ids in whole rows of one length; their sizes do not change the figures.
            max_batches: How many of them are read; None reads all.
            dense_twin: The same student trained without spikes, whose states are compared as well.
            names: What the student and its text are called in the results.
            on_progress: Is told how far it is.

        Raises:
            ConfigError: The student does not spike, or the layer map does not fit.
            DataError: Too few rows, or of unequal length.
            TeacherError: A teacher whose blocks are not known.
        """
        if not has_spikes(student):
            raise ConfigError(
                f"{names[0]} has no spikes to validate: train it with spikes.sites, such as recorded or all"
            )
        rows = joined_rows(batches, max_batches)
        options = self._options.model_copy(update={"window": rows.shape[1]})
        check_rows(len(rows), options)
        blocks = len(teacher_anatomy(teacher.model, teacher.name).blocks)
        layers = layer_targets(len(student.model.layers), blocks, self._layer_map)
        levels = int((student.config.spikes or {})["levels"])
        look = _Look(teacher, rows, options, layers, levels, on_progress)
        others = [untrained_student(student, options.seed), *([] if dense_twin is None else [dense_twin])]
        evidence, recorded, beside = look.at(student, others)
        causal = causal_records(causal_use(student, rows, options, on_done=partial(on_progress, "replacing spikes")))
        forget_draws()
        evidence = compared(evidence, beside[0], None if dense_twin is None else beside[1])
        wanted = [place for place in encoders_by_place(student) if layers.covers(*place)]
        results = ValidationResults(
            model=names[0],
            teacher=teacher.name,
            text=TextFacts(
                description=names[1],
                tokens=rows.numel(),
                rows=len(rows),
                window=rows.shape[1],
                token_sha256=hashlib.sha256(rows.cpu().numpy().astype("<i8").tobytes()).hexdigest(),
            ),
            options=options,
            layer_map={block: state - 1 for block, state in layers.made.items()},
            health=evidence.health,
            information=evidence.information,
            probes=evidence.probes,
            representation=evidence.representation,
            causal=causal,
            recorded_estimates=recorded,
            recorded_verdict=recorded_verdict(
                sound_estimates(evidence.health, evidence.information, evidence.representation), options.gates, recorded
            ),
            sound_verdict=sound_verdict(wanted, evidence.information, evidence.probes, causal, options.sound),
        )
        return ValidationOutcome(results)


@dataclass(frozen=True, eq=False)
class _Look:
    """What all students of one validation are looked at with."""

    teacher: Teacher
    rows: Int[Tensor, "rows time"]
    options: ValidationOptions
    layers: LayerTargets
    levels: int
    on_progress: OnProgress

    def at(
        self, student: GooseForCausalLM, others: Sequence[GooseForCausalLM]
    ) -> tuple[Evidence, RecordedEstimates | None, list[PlainEvidence]]:
        """Everything about the student, the recorded estimates of the same observations, and what others are by it."""
        evidence = SpikeEvidence(self.options, self.layers, len(self.rows), self.levels)
        pairs = [(other, evidence.beside()) for other in others]
        recorded = RecordedEvidence({block: state - 1 for block, state in self.layers.made.items()})
        done, calibration = 0, self.options.calibration_rows
        self.on_progress("reading spikes", done, len(self.rows))
        at_once = self.options.rows_per_batch or default_batch_rows(student, self.rows.shape[1], 1 + len(others))
        for ids in (*self.rows[:calibration].split(at_once), *self.rows[calibration:].split(at_once)):
            # Students beside the first are asked about what calibrated it, and have no part in that themselves.
            asked = [pair for pair in pairs if done >= calibration and not pair[1].is_complete]
            recorded.add(self._read(ids, [(student, evidence), *asked]))
            done += len(ids)
            self.on_progress("reading spikes", done, len(self.rows))
        self.on_progress("estimating", 0, 1)
        found, others_found = evidence.finish(), [plain.finish_plain() for _, plain in pairs]
        self.on_progress("estimating", 1, 1)
        return found, recorded.estimates(), others_found

    def _read(
        self, ids: Int[Tensor, "batch time"], asked: Sequence[tuple[GooseForCausalLM, SpikeEvidence]]
    ) -> Observation:
        """Hand each student's evidence what is seen of it, and return what is seen of the first.

        The teacher reads once for all. What is seen is let go of before the next rows are read.
        """
        taught = observe_teacher(self.teacher, ids)
        tasks = [partial(observe_beside, student, taught, ids) for student, _ in asked]
        seen = passes(tasks, self.teacher.model.device)
        for (_, evidence), part in zip(asked, seen, strict=True):
            evidence.add(part)
        return seen[0]


def joined_rows(batches: Iterable[Int[Tensor, "batch time"]], max_batches: int | None) -> Int[Tensor, "rows time"]:
    """All rows as one tensor.

    Raises:
        DataError: None, or rows of unequal length.
    """
    parts = list(islice(batches, max_batches))
    lengths = sorted({part.shape[1] for part in parts})
    if len(lengths) != 1:
        found = f"lengths {', '.join(map(str, lengths))}" if lengths else "none"
        raise DataError(f"a validation reads whole rows of one length, got {found}: give batches of one window")
    return torch.cat(parts)


def causal_records(found: SpikeUse) -> CausalUse:
    """What replacing spikes did, as validation.json has it."""
    replaced = [
        Replacement(site=entry.site, replacement=entry.replacement, perplexity=entry.perplexity, ratio=entry.ratio)
        for entry in found.replaced
    ]
    return CausalUse(tokens=found.tokens, perplexity=found.perplexity, replacements=tuple(replaced))


def compared(evidence: Evidence, untrained: PlainEvidence, twin: PlainEvidence | None) -> Evidence:
    """The evidence with the figures of the untrained student, and of the twin where there is one, beside its own."""
    matched = [
        _with(
            entry,
            untrained_cka=untrained.cka[entry.what, entry.layer],
            dense_twin_cka=None if twin is None else twin.cka.get((entry.what, entry.layer)),
        )
        for entry in evidence.representation.matched
    ]
    return Evidence(
        evidence.health,
        tuple(_with(e, untrained_bits=untrained.information_bits[e.layer, e.site]) for e in evidence.information),
        tuple(_with(e, untrained_bits=untrained.probe_bits[e.layer, e.site]) for e in evidence.probes),
        _with(evidence.representation, matched=tuple(matched)),
    )


def _with(entry: Entry, **figures: object) -> Entry:
    """A copy with other figures, which pass its own checks and rounding."""
    return type(entry)(**(dict(entry) | figures))
