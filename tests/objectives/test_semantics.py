import pytest
import torch

from asnn_goose.config_features import SemanticSpikes
from asnn_goose.errors import ConfigError
from asnn_goose.objectives.layer_maps import Depths
from asnn_goose.objectives.semantics import SemanticTerm, semantic_error, spike_target

DEPTHS = Depths(3, 4)


def term(widths: tuple[int, int] = (16, 16), **options: object) -> SemanticTerm:
    """A term as a recipe asks for it."""
    return SemanticTerm(SemanticSpikes.model_validate(options, strict=False), DEPTHS, widths)


def test_a_target_is_the_sign_of_what_stands_out_from_its_token() -> None:
    # Less the mean 1: (3, -3, 1, -1), whose mean magnitude is 2: 1 and -1 stay below 1.5.
    state = torch.tensor([[[4.0, -2.0, 2.0, 0.0]]])
    assert spike_target(state, 0.75).tolist() == [[[1.0, -1.0, 0.0, 0.0]]]
    assert spike_target(state, 0.49).tolist() == [[[1.0, -1.0, 1.0, -1.0]]]
    assert spike_target(100 * state + 7, 0.75).tolist() == [[[1.0, -1.0, 0.0, 0.0]]]
    assert spike_target(torch.full((1, 1, 4), 3.0), 0.75).abs().sum() == 0


def test_the_mean_of_k_and_v_is_compared_by_hand() -> None:
    key, value, target = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]], [[1.0, 0.0]]]).unsqueeze(1)
    # Means (1, 0) against (1, 0), with spikes of both signs at the second channel.
    assert semantic_error(key, value, target).item() == 0.0
    assert semantic_error(key, value, -target).item() == pytest.approx(2.0)


def test_spikes_follow_the_state_behind_the_teachers_block(seen_by_terms) -> None:
    seen, made = seen_by_terms(), term(pairs=[[0, 1], [2, 3]], last_state="normed")
    targets = {0: spike_target(seen.teacher[2], 0.75), 2: spike_target(seen.teacher_last, 0.75)}
    sent = seen.found.sent
    errors = [semantic_error(sent[block]["k"], sent[block]["v"], target) for block, target in targets.items()]
    ((name, weight, value),) = made.of(seen)
    assert (name, weight) == ("semantic_error", 0.08)
    assert value.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-6)
    assert made.states == {2}
    assert term(pairs=[[2, 3]]).states == {4}


def test_what_is_sent_teaches_keys_values_and_amplitudes(seen_by_terms) -> None:
    seen = seen_by_terms()
    ((_, _, value),) = term(pairs=[[1, 1]]).of(seen)
    value.backward()
    mixer = seen.student.model.layers[1].mixer
    for parameter in (mixer.key.weight, mixer.value.weight, mixer.encoders["k"].amplitude):
        assert parameter.grad.abs().sum() > 0


def test_the_weight_rises_from_step_400_to_800() -> None:
    made = term(pairs=[[0, 0]])
    assert [made.share(done, off=True) for done in (0, 400, 500, 800, 5000)] == [0.0, 0.0, 0.25, 1.0, 1.0]


def test_spikes_of_another_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"compares 16 channels .* 24 of the teacher: give student\.width=24"):
        term((16, 24))
