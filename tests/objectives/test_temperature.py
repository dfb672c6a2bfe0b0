import math

import pytest
import torch

from asnn_goose.config_objective import Objective
from asnn_goose.config_schedules import LinearSchedule
from asnn_goose.config_temperature import (
    AdversarialTemperature,
    Anchor,
    FixedTemperature,
    LearnedTemperature,
    ScheduledTemperature,
)
from asnn_goose.config_training import TrainingBySteps
from asnn_goose.objectives.schedules import ScheduledNumbers, Span
from asnn_goose.objectives.temperature import (
    GivenTemperature,
    build_temperature,
    reversal_strength,
    scaled_gradient,
)
from asnn_goose.training.optimizer import build_optimizer, learning_rate_share, set_learning_rate
from asnn_goose.training.stages import StagePlan

CPU = torch.device("cpu")
ALWAYS = {"warmup_share": 0.0}
START = 4.0


def built(chosen, step=0, whole=100):
    """The module of a temperature at a step of a budget."""
    numbers = ScheduledNumbers(Span(0, whole, whole), CPU)
    module = build_temperature(chosen, numbers)
    numbers.reach(step)
    return module


def toy_loss(temperature):
    """T^2 KL from three equal words to a student with logits (4, 0, 0): it rises to T = 3 and falls beyond."""
    return temperature**2 * (torch.log((4 / temperature).exp() + 2) - math.log(3) - 4 / (3 * temperature))


def trained(module, steps=20, rate=0.5):
    """The temperatures that plain gradient descent on the toy goes through."""
    seen = []
    for _ in range(steps):
        heat = module()
        (gradient,) = torch.autograd.grad(toy_loss(heat.value) + (heat.penalty or 0.0), [module.raw])
        with torch.no_grad():
            module.raw -= rate * gradient
        module.settle()
        seen.append(module.figures()["temperature"].item())
    return seen


def test_the_toy_falls_beyond_its_maximum():
    left, maximum, start, right = (toy_loss(torch.tensor(value)).item() for value in (2.0, 3.0, START, 5.0))
    assert left < maximum > start > right


def test_without_reversal_the_temperature_rises_and_with_it_falls():
    plain, reversed_ = (
        trained(built(AdversarialTemperature(start=START, gradient=gradient, **ALWAYS), step=100))
        for gradient in ("plain", "reversed")
    )
    assert all(after > before for before, after in zip([START, *plain], plain, strict=False))
    assert all(after < before for before, after in zip([START, *reversed_], reversed_, strict=False))


def test_a_reversed_gradient_is_minus_lambda_times_the_plain_one():
    raw, strength = torch.tensor(0.3, requires_grad=True), torch.tensor(0.25)
    (gradient,) = torch.autograd.grad(3.0 * scaled_gradient(raw, -strength), [raw])
    assert scaled_gradient(raw, -strength).item() == raw.item()
    assert gradient.item() == pytest.approx(-0.75)


def test_lambda_is_the_recorded_one():
    # v14.2: 5,000 steps, a warm-up of a fifth, read after the steps 1200 to 2400.
    chosen = AdversarialTemperature(warmup_share=0.2)
    found = [reversal_strength(chosen, step - 1, 5000) for step in (1200, 1500, 1800, 2100, 2400)]
    assert found == pytest.approx([0.0061, 0.0379, 0.0953, 0.17498, 0.2727], abs=6e-5)
    assert [round(strength, 2) for strength in found] == [0.01, 0.04, 0.10, 0.17, 0.27]
    assert [reversal_strength(chosen, step, 5000) for step in (0, 999, 1000, 5000)] == [0.0, 0.0, 0.0, 1.0]


def test_decay_alone_gives_the_recorded_temperature_after_600_steps():
    training = TrainingBySteps(steps=3000, warmup_steps=50, learning_rate=3e-4, weight_decay=0.01)
    for optimizer, expected in (("recorded", 2.00138), ("own", 2.0)):
        chosen = AdversarialTemperature(warmup_share=0.2, optimizer=optimizer)
        module = built(chosen, whole=3000)
        adam = build_optimizer(module, training, stage_of(chosen), temperature=module.raw)
        for step in range(600):
            set_learning_rate(adam, learning_rate_share(step, 3000, training))
            toy_loss(module().value).backward()
            adam.step()
            adam.zero_grad()
        assert module.figures()["temperature"].item() == pytest.approx(expected, abs=1e-5)


def stage_of(temperature):
    return StagePlan(
        index=0, name="distill", kind="distill", steps=3000, train="all", sublayers="mixers", batch_size=2, window=8,
        part_weights=None, accumulation=1, processes=1, learning_rate=3e-4, copied_learning_rate=3e-4,
        objective=Objective(temperature=temperature), exit=None,
    )  # fmt: skip


def test_ctkd_starts_where_it_is_told_and_stays_between_its_bounds():
    module = built(AdversarialTemperature())
    assert module.raw.item() == pytest.approx(math.log(0.25 / 0.75), abs=1e-6)
    assert module().value.item() == pytest.approx(2.0, abs=1e-6)
    for raw in (-50.0, 50.0):
        torch.nn.init.constant_(module.raw, raw)
        assert 1.0 <= module().value.item() <= 5.0


def test_a_constant_sign_knows_nothing_of_the_loss_and_lowers_the_temperature():
    chosen = AdversarialTemperature(gradient="sign", **ALWAYS)
    gradients = []
    for size in (1.0, -1e3):
        module = built(chosen, step=50)
        heat = module()
        assert heat.penalty.item() == 0.0
        gradients.append(torch.autograd.grad(size * toy_loss(heat.value) + heat.penalty, [module.raw])[0].item())
    assert gradients[0] == gradients[1] == pytest.approx(0.5 * 0.01)


@pytest.mark.parametrize("chosen", [LearnedTemperature(anchor=None, start=START),
                                    AdversarialTemperature(start=START, **ALWAYS),
                                    AdversarialTemperature(start=START, gradient="sign")])  # fmt: skip
def test_what_is_noted_is_the_losss_slope_before_any_reversal(chosen):
    module = built(chosen, step=30)
    (2.0 * toy_loss(module().value)).backward()
    step = 1e-5
    values = [toy_loss(torch.tensor(START + sign * step, dtype=torch.float64)).item() for sign in (1, -1)]
    assert module.slope.item() == pytest.approx(2.0 * (values[0] - values[1]) / (2 * step), rel=1e-4)


@pytest.mark.parametrize(
    ("target", "expected"), [(None, 2.0), (4.0, 4.0), (LinearSchedule(initial=4.0, final=2.0), 3.0)]
)
def test_the_anchor_draws_to_its_target_or_else_to_the_start(target, expected):
    module = built(LearnedTemperature(start=2.0, anchor=Anchor(weight=0.1, target=target)), step=50)
    torch.nn.init.constant_(module.raw, math.log(5.0))
    penalty = module().penalty
    (gradient,) = torch.autograd.grad(penalty, [module.raw])
    assert penalty.item() == pytest.approx(0.1 * (5.0 - expected) ** 2, rel=1e-5)
    assert gradient.item() == pytest.approx(0.2 * (5.0 - expected) * 5.0, rel=1e-5)


@pytest.mark.parametrize(("clamp", "comes_back"), [("projected", True), ("recorded", False)])
@pytest.mark.parametrize(("bound", "beyond"), [(10.0, 12.0), (1.0, 0.5)])
def test_beyond_a_recorded_clamp_no_anchor_pulls_and_a_projected_one_comes_back(clamp, comes_back, bound, beyond):
    module = built(LearnedTemperature(clamp=clamp, anchor=Anchor(weight=5.0)))
    torch.nn.init.constant_(module.raw, math.log(beyond))
    module.settle()
    assert module.figures()["temperature"].item() == pytest.approx(bound)
    seen = trained(module, steps=100, rate=0.01)
    assert (seen[-1] == pytest.approx(2.0, abs=0.2)) is comes_back
    assert (seen[-1] == bound) is not comes_back


def test_a_temperature_that_was_learned_before_is_taken_over_within_the_bounds():
    for chosen in (LearnedTemperature(upper=4.0, start=2.0), AdversarialTemperature(upper=4.0)):
        module = built(chosen)
        for given, expected in ((3.25, 3.25), (9.0, 4.0)):
            module.go_on_from(torch.tensor(given))
            assert module.figures()["temperature"].item() == pytest.approx(expected, abs=1e-3)


def test_what_learns_is_one_float32_number_and_what_is_given_none():
    for chosen in (LearnedTemperature(), AdversarialTemperature()):
        (parameter,) = built(chosen).parameters()
        assert (parameter.dtype, parameter.shape) == (torch.float32, ())
    for chosen in (FixedTemperature(), ScheduledTemperature(schedule=LinearSchedule(initial=4.0, final=1.0))):
        module = built(chosen, step=50)
        assert isinstance(module, GivenTemperature)
        assert list(module.parameters()) == []
        module.settle()
        assert float(module().value) == float(module.figures()["temperature"]) in (2.0, 2.5)
