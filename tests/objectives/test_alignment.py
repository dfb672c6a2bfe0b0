import pytest
import torch

from asnn_goose.config_features import HiddenAlignment
from asnn_goose.errors import ConfigError
from asnn_goose.objectives.alignment import AlignmentTerm
from asnn_goose.objectives.features import channel_error
from asnn_goose.objectives.layer_maps import Depths

UNIFORM = {"kind": "uniform"}


def term(depths: Depths, widths: tuple[int, int] = (16, 16), **options: object) -> AlignmentTerm:
    """A term in float64 as a recipe asks for it."""
    chosen = HiddenAlignment.model_validate(options, strict=False)
    return AlignmentTerm(chosen, depths, widths, torch.Generator().manual_seed(0)).double()


def test_the_recorded_form_is_the_mean_of_squares_behind_one_matrix_a_state(seen_by_terms) -> None:
    seen = seen_by_terms(teacher_blocks=4, teacher_width=24)
    linear = {"kind": "linear", "std": 0.02}
    made = term(Depths(3, 4), (16, 24), loss="mse", projector=linear, layer_map=UNIFORM, last_state="normed")
    # round(4 / 3), round(8 / 3), and the last behind the final norm.
    targets = (seen.teacher[1], seen.teacher[3], seen.teacher_last)
    expected = [
        (seen.state(number + 1) @ matrix.weight.T - target).square().mean()
        for number, (matrix, target) in enumerate(zip(made.projectors, targets, strict=True))
    ]
    assert made.error(seen).item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-12)
    assert made.states == {1, 3}


def test_by_default_every_block_counts_alike_by_its_channels_variance(seen_by_terms) -> None:
    seen, made = seen_by_terms(3), term(Depths(3, 3, (0, 1, 2)))
    expected = sum(channel_error(seen.state(number), seen.teacher[number]) for number in (1, 2, 3)) / 3
    ((name, weight, value),) = made.of(seen)
    assert (name, weight) == ("hidden_error", 4.0)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert not list(made.parameters())


def test_states_weigh_what_they_are_given(seen_by_terms) -> None:
    seen = seen_by_terms()
    plain = [
        term(Depths(3, 4), layer_map={"kind": "last", "count": 1}, loss="mse").error(seen),
        term(Depths(3, 4), layer_map=UNIFORM, layer_weights=[0, 0, 2], loss="mse").error(seen),
    ]
    assert plain[0].item() == pytest.approx(plain[1].item(), rel=1e-12)
    sums = [term(Depths(3, 4), layer_map=UNIFORM, layer_weights=weights, loss="mse").error(seen).item()
            for weights in ([1, 0, 0], [0, 1, 0], [1, 3, 0])]  # fmt: skip
    assert sums[2] == pytest.approx((sums[0] + 3 * sums[1]) / 4, rel=1e-12)


def test_embeddings_are_compared_if_asked_for(seen_by_terms) -> None:
    seen = seen_by_terms(3)
    made = term(Depths(3, 3), layer_map=UNIFORM, embeddings=True, layer_weights=[1, 0, 0, 0], loss="mse")
    expected = (seen.state(0) - seen.teacher[0]).square().mean()
    assert made.error(seen).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_learned_map_learns_which_states_to_follow(seen_by_terms) -> None:
    seen = seen_by_terms(teacher_blocks=4)
    made = term(Depths(3, 4), layer_map={"kind": "learned"}, loss="mse")
    assert [mixture.logits.argmax().item() for mixture in made.mixtures.values()] == [0, 2, 3]
    seen.teacher[4].copy_(seen.state(1).detach())
    optimizer = torch.optim.Adam(made.parameters(), lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        made.error(seen).backward(retain_graph=True)
        optimizer.step()
    assert made.mixtures["1"].logits.softmax(0)[3].item() > 0.9


def test_a_trained_projector_gets_a_gradient_and_a_frozen_one_passes_it_on(seen_by_terms) -> None:
    seen = seen_by_terms(teacher_width=24)
    for frozen in (False, True):
        linear = {"kind": "linear", "frozen": frozen}
        made = term(Depths(3, 4), (16, 24), layer_map=UNIFORM, projector=linear)
        (gradient,) = torch.autograd.grad(made.error(seen), seen.state(1), retain_graph=True)
        assert gradient.abs().sum() > 0
        made.error(seen).backward(retain_graph=True)
        assert all((matrix.weight.grad is None) is frozen for matrix in made.projectors)


def test_the_weight_rises_step_by_step_and_then_stays() -> None:
    made = term(Depths(3, 4), layer_map=UNIFORM, introduce_steps=4)
    assert [made.share(done, off=False) for done in (0, 1, 3, 4, 1000)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    at_once = term(Depths(3, 4), layer_map=UNIFORM)
    assert at_once.share(0, off=True) == 1.0


@pytest.mark.parametrize("loss", ["channel", "mse", "cosine", "relative_l2"])
def test_widths_that_differ_need_a_projector(loss) -> None:
    with pytest.raises(
        ConfigError, match=rf"loss={loss} compares 16 channels .* 24 of the teacher: give .*kind=linear"
    ):
        term(Depths(3, 4), (16, 24), layer_map=UNIFORM, loss=loss)


@pytest.mark.parametrize("loss", ["cka", "relation"])
def test_widths_may_differ_where_channels_are_not_compared(seen_by_terms, loss) -> None:
    made = term(Depths(3, 4), (16, 24), layer_map=UNIFORM, loss=loss)
    assert 0.0 < made.error(seen_by_terms(teacher_width=24)).item() < 10.0
