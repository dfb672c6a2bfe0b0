import pytest
import torch
from torch.nn import functional

from asnn_goose.config_objective import FixedTemperature, Objective
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.training.step import DistillationStep, TeacherView, channel_error

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


def test_hidden_states_add_their_error_to_the_loss_alone(step: DistillationStep) -> None:
    ids, seen = micro_batch(1)
    own = step.student.model(input_ids=ids, output_hidden_states=True).hidden_states[1:]
    stream = tuple(1.25 * state.detach() for state in own)
    bare, error = step(ids, seen), torch.stack([*map(channel_error, own, stream)]).mean().item()
    for weight in (1.0, 2.0):
        step.hidden_weight = weight
        record = step(ids, seen._replace(stream=stream))
        assert record.means["hidden_error"].item() == pytest.approx(error, rel=1e-6)
        assert record.loss.item() == pytest.approx(bare.loss.item() + weight * record.tokens * error, rel=1e-6)
        assert record.means["loss_nats"].item() == pytest.approx(bare.means["loss_nats"].item(), rel=1e-12)


def test_an_error_counts_by_how_much_its_channel_moves() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted, off = torch.randn(2, 3, 50, 8, generator=generator)
    scale = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 100.0, 1000.0])
    plain = channel_error(wanted + 0.1 * off, wanted)
    assert plain.item() == pytest.approx(0.01, rel=0.3)
    shifted = 10.0 * torch.arange(8.0)
    # The same error in units of each channel's spread, whatever its size and wherever its mean.
    scaled = channel_error(scale * (wanted + 0.1 * off) + shifted, scale * wanted + shifted)
    assert scaled.item() == pytest.approx(plain.item(), rel=1e-3)
    assert channel_error(wanted, wanted).item() == 0.0


def test_a_channel_that_never_moves_stays_finite_and_does_not_outweigh_the_others() -> None:
    wanted = torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(0))
    wanted[..., 0] = 2.0
    found = (wanted + 0.1).requires_grad_()
    error = channel_error(found, wanted)
    error.backward()
    # One channel at the floor of a hundredth of the median, seven at about 1: (100 + 7) / 8 of the plain error.
    assert error.item() == pytest.approx(0.01 * 107 / 8, rel=0.3)
    assert found.grad.isfinite().all()
    assert channel_error(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)).item() == 0.0


def test_a_stream_of_another_number_of_blocks_is_refused(step: DistillationStep) -> None:
    ids, seen = micro_batch(1)
    step.hidden_weight = 1.0
    with pytest.raises(ValueError, match="zip"):
        step(ids, seen._replace(stream=(torch.ones(4, 9, WIDTH),)))
