import math

import pytest
import torch
from pydantic import TypeAdapter
from torch.nn import functional

from asnn_goose.config_features import FeatureDynamics
from asnn_goose.errors import ConfigError
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.objectives.dynamics import CkaTerm, KillSwitch, PredictionTerm, SwitchState
from asnn_goose.objectives.layer_maps import Depths

DEPTHS = Depths(3, 4)


def options(**fields: object) -> FeatureDynamics:
    """Feature dynamics as a recipe asks for them."""
    return TypeAdapter(FeatureDynamics).validate_python(fields, strict=False)


def recorded_cka(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """CKA as recorded: columns centered, rows of length 1, products of tokens."""
    grams = []
    for part in (x.flatten(0, 1), y.flatten(0, 1)):
        part = part - part.mean(dim=0)
        part = part / (part.norm(dim=1, keepdim=True) + 1e-8)
        grams.append(part @ part.T)
    first, second = grams
    scale = (first.square().sum() * second.square().sum()).sqrt()
    return ((first * second).sum() / (scale + 1e-8)).clamp(0, 1)


def test_the_changes_of_all_pairs_are_compared_as_recorded(seen_by_terms) -> None:
    seen = seen_by_terms(teacher_width=24)
    made = CkaTerm(options(kind="cka", pairs=[[0, 2], [2, 3]]), DEPTHS, (16, 24))
    errors = [
        1 - recorded_cka(seen.state(s + 1) - seen.state(s), seen.teacher[t + 1] - seen.teacher[t])
        for s, t in ((0, 2), (2, 3))
    ]
    ((name, weight, value),) = made.of(seen)
    assert (name, weight) == ("dynamics_error", 0.001)
    assert value.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-6)
    assert made.states == {2, 3, 4}


def test_the_recorded_offset_takes_the_next_change_and_skips_the_last_pair(seen_by_terms) -> None:
    seen = seen_by_terms()
    made = CkaTerm(options(kind="cka", pairs=[[0, 2], [2, 3]], recorded_offset=True), DEPTHS, (16, 16))
    expected = 1 - recorded_cka(seen.state(2) - seen.state(1), seen.teacher[4] - seen.teacher[3])
    ((_, _, value),) = made.of(seen)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    at_12 = CkaTerm(options(kind="cka", recorded_offset=True), Depths(5, 12), (16, 16))
    assert at_12.ends == ((2, 4), (4, 9))
    assert CkaTerm(options(kind="cka"), Depths(5, 12), (16, 16)).ends == ((1, 3), (3, 8), (5, 12))


def test_a_student_that_moves_as_its_teacher_has_no_error(seen_by_terms) -> None:
    seen = seen_by_terms(3)
    seen.teacher.update({number: 2.0 * seen.state(number).detach() + 1.0 for number in range(4)})
    made = CkaTerm(options(kind="cka", pairs=[[0, 0], [1, 1], [2, 2]]), Depths(3, 3), (16, 16))
    ((_, _, value),) = made.of(seen)
    assert value.item() == pytest.approx(0.0, abs=1e-6)


def test_changes_of_equal_width_may_be_compared_by_their_squares(seen_by_terms) -> None:
    seen = seen_by_terms()
    made = CkaTerm(options(kind="cka", pairs=[[1, 2]], compare="mse"), DEPTHS, (16, 16))
    change = seen.state(2) - seen.state(1) - (seen.teacher[3] - seen.teacher[2])
    ((_, _, value),) = made.of(seen)
    assert value.item() == pytest.approx(change.square().mean().item(), rel=1e-9)
    with pytest.raises(ConfigError, match=r"compare=mse compares 16 channels .* 24 of the teacher: give compare=cka"):
        CkaTerm(options(kind="cka", pairs=[[1, 2]], compare="mse"), DEPTHS, (16, 24))


def test_an_offset_that_leaves_no_pair_is_refused() -> None:
    with pytest.raises(ConfigError, match="recorded_offset=true skips every pair"):
        CkaTerm(options(kind="cka", pairs=[[2, 3]], recorded_offset=True), DEPTHS, (16, 16))


def prediction(**fields: object) -> tuple[PredictionTerm, torch.nn.Module, LinearHead]:
    """A term for the made-up teacher, with that one's norm and head."""
    torch.manual_seed(3)
    norm = torch.nn.LayerNorm(24).double()
    head = LinearHead(torch.randn(29, 24, dtype=torch.float64), torch.randn(29, dtype=torch.float64))
    return PredictionTerm(options(kind="prediction", **fields), DEPTHS, norm, head, 5), norm, head


def test_predictions_form_as_the_formula_says(seen_by_terms) -> None:
    seen = seen_by_terms(teacher_width=24)
    made, norm, head = prediction(layers=3, trajectory_weight=0.5, dynamics_weight=2.0)
    # Student's states 1, 2, 3 beside the teacher's round(4 / 3), round(8 / 3), 4.
    found = [seen.student.model.norm(seen.state(number)) @ seen.student.lm_head.weight.T for number in (1, 2, 3)]
    read = [norm(seen.teacher[1]), norm(seen.teacher[3]), seen.teacher_last]
    found = [logits.log_softmax(-1) for logits in found]
    wanted = [(state @ head.weight.T + head.bias).log_softmax(-1) for state in read]
    kl = [(t.exp() * (t - s)).sum(-1).mean() for s, t in zip(found[:2], wanted[:2], strict=True)]
    turns = [1 - functional.cosine_similarity(found[n + 1] - found[n], wanted[n + 1] - wanted[n], dim=-1).mean()
             for n in (0, 1)]  # fmt: skip
    values = {name: (weight, value.item()) for name, weight, value in made.of(seen)}
    assert values == {"trajectory_kl_nats": (0.5, pytest.approx(torch.stack(kl).mean().item(), rel=1e-9)),
                      "dynamics_error": (2.0, pytest.approx(torch.stack(turns).mean().item(), rel=1e-9))}  # fmt: skip


def test_readings_teach_the_student_and_its_head_alone(seen_by_terms) -> None:
    seen = seen_by_terms(teacher_width=24)
    made, norm, _ = prediction(layers=2)
    assert not list(made.parameters())
    sum(value for _, _, value in made.of(seen)).backward()
    assert seen.student.lm_head.weight.grad.abs().sum() > 0
    assert seen.student.model.layers[0].mixer.key.weight.grad.abs().sum() > 0
    assert norm.weight.grad is None


def test_what_weighs_nothing_is_not_computed(seen_by_terms) -> None:
    seen = seen_by_terms(teacher_width=24)
    assert [name for name, *_ in prediction(trajectory_weight=0.0)[0].of(seen)] == ["dynamics_error"]
    assert [name for name, *_ in prediction(dynamics_weight=0.0)[0].of(seen)] == ["trajectory_kl_nats"]


def test_dynamics_count_behind_their_warm_up_until_they_are_off() -> None:
    for made in (CkaTerm(options(kind="cka", pairs=[[0, 0]]), DEPTHS, (16, 16)), prediction(warmup_steps=500)[0]):
        assert [made.share(done, off=False) for done in (0, 499, 500, 4000)] == [0.0, 0.0, 1.0, 1.0]
        assert made.share(4000, off=True) == 0.0


def test_the_switch_arms_at_the_first_evaluation_behind_the_warm_up_and_fires_for_good() -> None:
    """Evaluations every 300 steps, as in the record, where none fell on step 500."""
    switch, state, seen = KillSwitch(500, 1.10), SwitchState(), []
    for done, perplexity in ((0, 9e9), (300, 900.0), (600, 400.0), (900, 439.0), (1200, 441.0), (1500, 300.0)):
        state = switch.judge(state, done, perplexity)
        seen.append(tuple(state))
    assert seen == [(None, False)] * 2 + [(400.0, False)] * 2 + [(400.0, True)] * 2


def test_a_perplexity_that_is_no_number_fires_the_switch() -> None:
    armed = SwitchState(400.0, False)
    for perplexity in (math.nan, math.inf):
        assert KillSwitch(500, 1.10).judge(armed, 900, perplexity).off
