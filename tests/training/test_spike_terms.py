import pytest
import torch

from asnn_goose.config_objective import Objective
from asnn_goose.config_student import GooseStudent, Spikes
from asnn_goose.evaluation.student import probe_spikes, site_encoders
from asnn_goose.models.build import build_student
from asnn_goose.training.spike_terms import SpikePenalties, watch_activity

IDS = torch.arange(40).reshape(2, 20)
LEARNED = {"kind": "learned"}


@pytest.fixture
def student(teacher):
    options = Spikes.model_validate({"sites": "all", "amplitude": "channel", "scale": "token", "threshold": LEARNED})
    return build_student(GooseStudent(mixer="goose", keep_layers=2), options, teacher, 0)


def objective(**fields):
    return Objective.model_validate(fields, strict=False)


def test_an_objective_without_penalties_adds_nothing_and_counts_nothing(student):
    watch_activity(student, objective())
    assert student(IDS).events is None
    assert not list(SpikePenalties(student, objective()).of(None))


def test_events_are_counted_where_layers_read_and_at_the_sites_that_are_named(student):
    watch_activity(student, objective(activity={"events": 0.2}))
    read = {"mixer_in", "gate_mid", "mixer_out", "ffn_in", "ffn_mid"}
    assert [set(block) for block in student(IDS).events] == [read, read]
    watch_activity(student, objective(activity={"events": 0.2, "sites": {"k": 0.3}}))
    assert [set(block) for block in student(IDS).events] == [{*read, "k"}] * 2
    watch_activity(student, None)
    assert student(IDS).events is None


def test_what_is_counted_is_what_is_sent(student):
    watch_activity(student, objective(activity={"events": 0.2}))
    events = student.model(input_ids=IDS).events
    for name, statistics in probe_spikes(student, IDS).items():
        layer, site = name.removeprefix("layer_").split(".")
        if site not in "kv":
            assert events[int(layer)][site].item() == pytest.approx(statistics["events_per_activation"], rel=1e-6)


def test_a_limit_on_activity_makes_a_student_send_less(student):
    limited = objective(activity={"events": 0.15, "sites": {"ffn_mid": 0.05}, "weight": 1.0})
    watch_activity(student, limited)
    penalties = SpikePenalties(student, limited)
    optimizer = torch.optim.Adam([encoder.alpha for encoder in site_encoders(student).values()], lr=0.05)
    for _ in range(60):
        ((name, weight, penalty),) = penalties.of(student.model(input_ids=IDS).events)
        assert (name, weight) == ("activity_penalty", 1.0)
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
    with torch.no_grad():
        events = student.model(input_ids=IDS).events
    for block in events:
        assert all(float(seen) < 0.2 for site, seen in block.items())
        assert float(block["ffn_mid"]) < 0.08


def test_amplitudes_and_thresholds_are_penalized_if_asked_for(student):
    chosen = objective(amplitude_variance=2.0, threshold_collapse={"weight": 3.0, "least_alpha": 5.0})
    found = {name: (weight, float(value.detach())) for name, weight, value in SpikePenalties(student, chosen).of(None)}
    assert found["amplitude_variance"] == (2.0, 0.0)
    assert found["threshold_collapse"][0] == 3.0
    assert found["threshold_collapse"][1] == pytest.approx(16.0, rel=1e-6)
