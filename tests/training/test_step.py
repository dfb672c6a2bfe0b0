import pytest
import torch
from torch.nn import functional

from asnn_goose.config_features import HiddenAlignment
from asnn_goose.config_objective import FixedTemperature, Objective
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.objectives.features import channel_error
from asnn_goose.objectives.layer_maps import Depths
from asnn_goose.training.feature_terms import FeatureSetting, FeatureTerms
from asnn_goose.training.step import DistillationStep, TeacherView

VOCABULARY, WIDTH, TEACHER_WIDTH = 53, 16, 12
OBJECTIVE = Objective(temperature=FixedTemperature(value=2.0), cross_entropy_weight=0.5, chunk_tokens=7)


@pytest.fixture
def step() -> DistillationStep:
    """A float64 step with seeded weights."""
    torch.manual_seed(0)
    config = GooseConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, max_position_embeddings=32)
    head = LinearHead(torch.randn(VOCABULARY, TEACHER_WIDTH, dtype=torch.float64), None)
    return DistillationStep(GooseForCausalLM(config).double(), head, OBJECTIVE)


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
