import pytest

from asnn_goose.results import SpikeResult
from asnn_goose.training.distill import RunOutcome
from asnn_goose.training.judge import allowed_skips, run_checks


def spike_shares(planned: float, measured: float | None) -> SpikeResult:
    return SpikeResult(spike_fed_mac_share=planned, measured_spike_fed_mac_share=measured)


def test_a_run_that_did_not_learn_or_lost_steps_fails_its_checks() -> None:
    shares = spike_shares(0.5, 0.5)
    assert [entry.passed for entry in run_checks((50.0, 60.0), 50.0, 1, shares)] == [False, False, True]
    assert [entry.passed for entry in run_checks((50.0, 40.0), 40.0, 0, shares)] == [True, True, True]


@pytest.mark.parametrize(("measured", "passed"), [(0.8, True), (0.79999, False), (0.80001, False), (None, False)])
def test_a_share_that_is_not_the_planned_one_fails_its_check(measured: float | None, passed: bool) -> None:
    assert run_checks((50.0, 40.0), 40.0, 0, spike_shares(0.8, measured))[-1].passed is passed


def test_a_scaler_may_search_for_its_scale_and_nothing_else_may_skip() -> None:
    assert [allowed_skips(precision, 4_100) for precision in ("fp16", "bf16", "fp32")] == [18, 0, 0]
    checks = run_checks((50.0, 40.0), 40.0, 3, spike_shares(0.5, 0.5), allowed=16)
    assert all(entry.passed for entry in checks)


def test_a_finished_run_passes_what_every_run_has_to_pass(finished_run: RunOutcome) -> None:
    found = {entry.name: entry for entry in finished_run.results.checks}
    assert len(found) == 6
    assert [name for name, entry in found.items() if not entry.passed] == ["amplitudes of k and v differ by"]
    assert found["best checkpoint read again, its perplexity off by"].value <= 1e-9
    assert found["amplitudes of k and v differ by"].outcome == "warning"


def test_a_finished_run_tells_its_health_and_repeats_no_version(finished_run: RunOutcome) -> None:
    health = finished_run.results.health
    assert health.update_to_weight.measurements == health.gradient_norm.measurements == 6
    assert health.top1_agreement.measurements == 3
    assert health.train_validation_gap.measurements == 2
    assert health.scaler_scale.measurements == 0
    assert finished_run.results.comparison.repeated is None
