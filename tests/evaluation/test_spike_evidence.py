import pytest
import torch

from asnn_goose.config_validation import ValidationOptions
from asnn_goose.errors import DataError
from asnn_goose.evaluation.layer_targets import LayerTargets
from asnn_goose.evaluation.similarity_evidence import SimilarityEvidence
from asnn_goose.evaluation.spike_evidence import SpikeEvidence, check_rows, rows_needed, rows_of
from asnn_goose.evaluation.synthetic_spikes import SITES, synthetic_observations

ROWS, TIME = 32, 48
OPTIONS = ValidationOptions(
    window=TIME, calibration_rows=8, components=2, bins=4, permutations=39, permuted_rows=8, channels=8,
    neighbor_tokens=100,
)  # fmt: skip
LAYERS = LayerTargets({0: 0}, {0: 2})


def evidence(rows=ROWS, rows_per_batch=8, plain=False, options=OPTIONS):
    made = SpikeEvidence(options, LAYERS, rows, levels=1)
    for seen in synthetic_observations("perfect", 0, rows, TIME, 16, rows_per_batch=rows_per_batch):
        made.add(seen)
    return beside(made, rows, rows_per_batch) if plain else made


def beside(calibrated, rows, rows_per_batch=8):
    """The same spikes as those of another student, from behind the calibration on."""
    made, calibrating = calibrated.beside(), calibrated.options.calibration_rows
    for seen in synthetic_observations("perfect", 0, rows, TIME, 16, rows_per_batch=rows_per_batch):
        made.add(rows_of(seen, slice(calibrating, None)))
        calibrating = max(0, calibrating - seen.rows)
    return made


def numbers(found):
    """Every figure, by where it stands."""
    records = (*found.health, *found.information, *found.probes, *found.representation.matched)
    dumped = [record.model_dump() for record in records]
    return [(str(path), value) for part in dumped for path, value in flattened(part)]


def flattened(part, path=()):
    if isinstance(part, list | tuple):
        part = dict(enumerate(part))
    if isinstance(part, dict):
        return [leaf for key, value in part.items() for leaf in flattened(value, (*path, key))]
    return [(path, part)]


@pytest.mark.parametrize("rows_per_batch", [1, 5, 32])
def test_batches_change_no_figure(rows_per_batch):
    # 8 rows calibrate, so that a batch of 5 or 32 is cut.
    one, other = numbers(evidence().finish()), numbers(evidence(rows_per_batch=rows_per_batch).finish())
    assert [path for path, _ in one] == [path for path, _ in other]
    for (path, value), (_, again) in zip(one, other, strict=True):
        assert value == again or value == pytest.approx(again, abs=1e-6), path


def test_every_site_of_every_block_has_its_figures():
    found = evidence().finish()
    places = sorted((0, site) for site in SITES)
    for records in (found.health, found.information, found.probes):
        assert sorted((record.layer, record.site) for record in records) == places
    assert {entry.what for entry in found.representation.matched} == {"k", "v", "state", "block_output"}


def test_the_plain_form_gives_the_same_figures_of_the_spikes():
    found, plain = evidence().finish(), evidence(plain=True).finish_plain()
    for entry in found.information:
        assert plain.information_bits[entry.layer, entry.site] == pytest.approx(entry.spikes_bits, rel=1e-5)
    for entry in found.probes:
        assert plain.probe_bits[entry.layer, entry.site] == pytest.approx(entry.spikes_bits, rel=1e-5)
    for entry in found.representation.matched:
        assert plain.cka[entry.what, entry.layer] == entry.cka


@pytest.mark.parametrize(("rows_per_batch", "similar"), [(5, 17), (8, 17), (8, 31)])
def test_of_a_long_text_probes_states_and_other_students_take_the_beginning_and_the_rest_takes_all(
    rows_per_batch, similar
):
    options = OPTIONS.model_copy(update={"probe_tokens": 24 * TIME, "similarity_tokens": similar * TIME})
    long, short = evidence(64, rows_per_batch, options=options).finish(), evidence(8 + 24).finish()
    assert numbers_of(long.probes) == pytest.approx(numbers_of(short.probes), abs=1e-6)
    # Probes are fitted to 12 rows; what is compared comes behind them, whole.
    (whole_text,) = synthetic_observations("perfect", 0, 64, TIME, 16, rows_per_batch=64)
    compared = SimilarityEvidence(LAYERS, OPTIONS.seed)
    compared.add(rows_of(whole_text, slice(8 + 12, 8 + 12 + similar)), 12)
    assert numbers_of(long.representation.matched) == pytest.approx(numbers_of(compared.summary().matched), abs=1e-6)
    whole = evidence(64).finish()
    assert numbers_of(long.health) == numbers_of(whole.health) != numbers_of(short.health)
    assert numbers_of(long.information) == pytest.approx(numbers_of(whole.information), abs=1e-6)
    plain = evidence(64, rows_per_batch, plain=True, options=options)
    assert plain.is_complete
    expected = evidence(8 + 24, plain=True).finish_plain()
    assert plain.finish_plain().information_bits == pytest.approx(expected.information_bits)
    assert plain.finish_plain().probe_bits == pytest.approx(expected.probe_bits)


def test_a_student_is_looked_at_until_nothing_more_counts():
    seen = list(synthetic_observations("perfect", 0, 16, TIME, 16, rows_per_batch=8))
    options = OPTIONS.model_copy(update={"probe_tokens": 4 * TIME, "similarity_tokens": 2 * TIME})
    own = SpikeEvidence(options, LAYERS, 16, levels=1)
    own.add(seen[0])
    plain = own.beside()
    assert not plain.is_complete
    own.add(seen[1])
    plain.add(seen[1])
    assert plain.is_complete
    assert not own.is_complete


def test_a_student_is_not_compared_before_the_other_is_calibrated():
    seen = next(synthetic_observations("perfect", 0, 16, TIME, 16, rows_per_batch=8))
    with pytest.raises(ValueError, match="behind the calibration"):
        SpikeEvidence(OPTIONS, LAYERS, 16, levels=1).beside().add(seen)


def test_evidence_of_any_student_is_gathered_where_the_teacher_is(monkeypatch):
    devices = []
    monkeypatch.setattr(
        "asnn_goose.evaluation.spike_evidence.side_by_side",
        lambda tasks, device: devices.append(device) or [task() for task in tasks],
    )
    own = SpikeEvidence(OPTIONS, LAYERS, 16, levels=1)
    own._device = torch.device("meta")
    for seen in synthetic_observations("perfect", 0, 16, TIME, 16, rows_per_batch=8):
        own.add(seen)
    plain = own.beside()
    plain._device = torch.device("meta")
    plain.add(seen)
    assert devices == [torch.device("cpu")] * 2


def numbers_of(records):
    """All figures but null and names, in their order."""
    return [value for _, value in flattened([record.model_dump() for record in records]) if isinstance(value, float)]


def test_memory_does_not_grow_with_the_text():
    assert held(evidence(rows=64)) == held(evidence(rows=32))


def held(made):
    """Numbers in all tensors that the evidence holds on to."""
    seen, waiting, total = set(), [made], 0
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, torch.Tensor):
            total += part.numel()
        elif isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, (list, tuple)):
            waiting += part
        elif hasattr(part, "__dict__"):
            waiting += vars(part).values()
    return total


def test_a_text_of_too_few_rows_is_refused_and_told_what_is_needed():
    needed = rows_needed(OPTIONS)
    check_rows(needed, OPTIONS)
    with pytest.raises(
        DataError, match=rf"has {needed - 1} rows of 48 tokens; .* need {needed} \({needed * 48} tokens\)"
    ):
        check_rows(needed - 1, OPTIONS)
