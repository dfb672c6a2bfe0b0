from asnn_goose.health import Course, Health, PreviousRun, course, training_health
from asnn_goose.measurements import Curve

METRICS = [
    {"step": 0, "top1_agreement": 0.1},
    {"step": 2, "gradient_norm": 3.0, "clip_rate": 1.0, "scaler_scale": None},
    {"step": 4, "gradient_norm": 1.0, "clip_rate": 0.5, "scaler_scale": None},
    {"step": 4, "top1_agreement": 0.3, "train_validation_gap_nats": 0.25},
]


def test_a_course_is_told_by_its_finite_values():
    found = course(Curve(steps=(1, 2, 3, 4), values=(2.0, None, 5.0, 5.0)), "nats")
    assert found == Course(unit="nats", first=2.0, last=5.0, least=2.0, most=5.0, mean=4.0, measurements=3)


def test_nothing_measured_is_null_and_not_zero():
    assert course(Curve(steps=(1,), values=(None,)), "x") == Course(unit="x")
    assert training_health([]) == Health()


def test_each_quantity_comes_from_its_own_key():
    health = training_health(METRICS)
    assert (health.gradient_norm.mean, health.clip_rate.last, health.top1_agreement.first) == (2.0, 0.5, 0.1)
    assert health.train_validation_gap == Course(
        unit="nats per token", first=0.25, last=0.25, least=0.25, most=0.25, mean=0.25, measurements=1
    )
    assert health.scaler_scale.measurements == 0


def test_every_quantity_has_a_unit():
    courses = [value for value in vars(Health()).values() if isinstance(value, Course)]
    assert len(courses) == 8
    assert all(entry.unit for entry in courses)


def test_the_run_before_is_kept_beside():
    before = PreviousRun(folder="a", device="cpu", tokens_per_second=10.0, speed_ratio=1.1)
    assert training_health([], before).previous_run == before
