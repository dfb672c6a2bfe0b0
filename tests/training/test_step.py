import pytest
import torch
from torch.nn import functional

from asnn_goose.config_features import HiddenAlignment
from asnn_goose.config_objective import ForwardKl, Objective, ReverseKl, SkewKl, TotalVariation
from asnn_goose.config_schedules import CosineSchedule, LinearSchedule
from asnn_goose.config_temperature import AdversarialTemperature, Anchor, FixedTemperature, LearnedTemperature
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.objectives.features import channel_error
from asnn_goose.objectives.layer_maps import Depths
from asnn_goose.objectives.schedules import Span
from asnn_goose.training.feature_terms import FeatureSetting, FeatureTerms
from asnn_goose.training.step import DistillationStep, TeacherView

VOCABULARY, WIDTH, TEACHER_WIDTH = 53, 16, 12
OBJECTIVE = Objective(temperature=FixedTemperature(value=2.0), cross_entropy_weight=0.5, chunk_tokens=7)


@pytest.fixture
def step() -> DistillationStep:
    """A float64 step with seeded weights."""
    return step_of(OBJECTIVE)


def step_of(objective: Objective) -> DistillationStep:
    """A float64 step with seeded weights, half-way through 100 steps."""
    torch.manual_seed(0)
    config = GooseConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, max_position_embeddings=32)
    head = LinearHead(torch.randn(VOCABULARY, TEACHER_WIDTH, dtype=torch.float64), None)
    step = DistillationStep(GooseForCausalLM(config), head, objective, span=Span(0, 100, 100)).double()
    step.reach(50)
    return step


def micro_batch(seed: int) -> tuple[torch.Tensor, TeacherView]:
    """Token ids and teacher hidden states of four rows."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (4, 9), generator=generator)
    return ids, TeacherView(torch.randn(4, 9, TEACHER_WIDTH, dtype=torch.float64, generator=generator))


def test_the_loss_is_the_dense_objective_per_token(step: DistillationStep) -> None:
    ids, seen = micro_batch(1)
    record = step(ids, seen)
    student, teacher = step.student(ids).logits, seen.hidden @ step._teacher_head[0].weight.T
    kl = functional.kl_div((student / 2).log_softmax(-1), (teacher / 2).log_softmax(-1), log_target=True,
                           reduction="none").sum(-1).mean()  # fmt: skip
    cross_entropy = functional.cross_entropy(student[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected = (4 * kl + 0.5 * cross_entropy).item()
    assert (record.loss / record.tokens).item() == pytest.approx(expected, rel=1e-12)
    assert record.means["kl_nats"].item() == pytest.approx(kl.item(), rel=1e-12)


def test_every_parameter_gets_a_gradient(step: DistillationStep) -> None:
    step(*micro_batch(1)).loss.backward()
    without = [name for name, parameter in step.named_parameters() if parameter.grad is None]
    assert not without


def test_the_teacher_is_no_parameter_of_the_step(step: DistillationStep) -> None:
    assert sum(p.numel() for p in step.parameters()) == step.student.num_parameters()


def features(weight: float) -> FeatureTerms:
    """Alignment of both blocks with the same states of a teacher that is as wide and as deep."""
    head = LinearHead(torch.randn(VOCABULARY, WIDTH, dtype=torch.float64), None)
    setting = FeatureSetting(Depths(2, 2, (0, 1)), (WIDTH, WIDTH), head, torch.nn.Identity())
    return FeatureTerms(Objective(hidden_alignment=HiddenAlignment(weight=weight)), setting, seed=0)


def test_hidden_states_add_their_error_to_the_loss_alone(step: DistillationStep) -> None:
    ids, seen = micro_batch(1)
    own = step.student.model(input_ids=ids, output_hidden_states=True).hidden_states[1:]
    stream = tuple(1.25 * state.detach() for state in own)
    bare, error = step(ids, seen), torch.stack([*map(channel_error, own, stream)]).mean().item()
    for weight in (1.0, 2.0):
        step.features = features(weight)
        record = step(ids, seen._replace(stream=stream))
        assert record.means["hidden_error"].item() == pytest.approx(error, rel=1e-6)
        assert record.loss.item() == pytest.approx(bare.loss.item() + weight * record.tokens * error, rel=1e-6)
        assert record.means["loss_nats"].item() == pytest.approx(bare.means["loss_nats"].item(), rel=1e-12)


def test_a_stream_of_another_number_of_blocks_is_refused(step: DistillationStep) -> None:
    ids, seen = micro_batch(1)
    step.features = features(1.0)
    with pytest.raises(ValueError, match="zip"):
        step(ids, seen._replace(stream=(torch.ones(4, 9, WIDTH),)))


LEARNED = LearnedTemperature(start=1.7, anchor=Anchor(weight=0.3, target=2.5), entropy_weight=0.2)
PLAIN = AdversarialTemperature(start=1.7, gradient="plain", warmup_share=0.0)


@pytest.mark.parametrize("divergence", [ForwardKl(), ReverseKl(), SkewKl(share=0.3), TotalVariation()])
@pytest.mark.parametrize(("temperature", "factor"), [(LEARNED, 1.0), (PLAIN, 0.5)], ids=["learned", "ctkd"])
def test_the_temperatures_gradient_is_the_losss_slope_by_it(temperature, factor, divergence):
    step = step_of(Objective(temperature=temperature, divergence=divergence, cross_entropy_weight=0.5, chunk_tokens=7))
    step(*micro_batch(1)).loss.backward()
    raw, losses = step.temperature.raw, []
    for change in (1e-5, -2e-5):
        with torch.no_grad():
            raw += change
        losses.append(step(*micro_batch(1)).loss.item())
    # Lambda is a half at half of the budget, and a float32 cosine.
    assert raw.grad.item() == pytest.approx(factor * (losses[0] - losses[1]) / 2e-5, rel=1e-6)


def test_scheduled_weights_are_those_of_the_step_it_has_reached() -> None:
    rising, falling = LinearSchedule(initial=0.0, final=1.0), CosineSchedule(initial=1.0, final=0.0, end=0.5)
    scheduled = step_of(Objective(kl_weight=rising, cross_entropy_weight=falling, chunk_tokens=7))
    for done, weights in ((50, (0.5, 0.0)), (0, (0.0, 1.0)), (25, (0.25, 0.5))):
        scheduled.reach(done)
        plain = step_of(Objective(kl_weight=weights[0], cross_entropy_weight=weights[1], chunk_tokens=7))
        losses = [step(*micro_batch(1)).loss.item() for step in (scheduled, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert {name: figure.item() for name, figure in scheduled.figures().items()} == pytest.approx(
        {"kl_weight": 0.25, "cross_entropy_weight": 0.5, "temperature": 2.0}
    )


def test_another_divergence_goes_by_its_own_name() -> None:
    means = step_of(Objective(divergence=TotalVariation()))(*micro_batch(1)).means
    assert 0.0 < means["total_variation"].item() < 1.0
    assert "kl_nats" not in means
