import pytest
import torch
from torch import nn

from asnn_goose.config_objective import Objective
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.models.block import run_block
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.objectives.layer_maps import Depths
from asnn_goose.training.feature_terms import FeatureSetting, FeatureTerms
from asnn_goose.training.gradient_conflict import gradient_conflict

VOCABULARY, WIDTH = 29, 16
IDS = torch.arange(20).reshape(2, 10)
LAST = {"hidden_alignment": {"loss": "mse", "layer_map": {"kind": "last", "count": 1}}}


@pytest.fixture
def student() -> GooseForCausalLM:
    """A student in float64 whose final norm leaves states as they are, but for their size and mean."""
    torch.manual_seed(0)
    config = GooseConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, max_position_embeddings=32)
    return GooseForCausalLM(config).double()


def conflict(student, shift, objective=LAST):
    """The conflict with a teacher of the student's head, whose last state is the student's own plus a shift."""
    found = student.model(input_ids=IDS, output_hidden_states=True)
    wanted = found.hidden_states[-1].detach() + shift(found)
    head = LinearHead(student.lm_head.weight.detach())
    setting = FeatureSetting(Depths(2, 2), (WIDTH, WIDTH), head, nn.Identity())
    features = FeatureTerms(Objective.model_validate(objective, strict=False), setting, seed=0)
    hidden = student.model.norm(wanted).detach()
    return gradient_conflict(student, features, hidden, (wanted,) * len(features.states), IDS, 2.0, 7)


def test_a_state_that_would_bring_the_predictions_pulls_the_same_way(student):
    def shift(found):
        return 1e-3 * torch.randn(found.last_hidden_state.shape, dtype=torch.float64)

    assert conflict(student, shift).item() > 0.1


def test_the_cosine_is_that_of_both_gradients_at_all_block_outputs(student):
    found = student.model(input_ids=IDS, output_hidden_states=True)
    target = torch.randn(found.last_hidden_state.shape, dtype=torch.float64)
    wanted = found.hidden_states[-1].detach() + target
    log_p = (student.model.norm(wanted) @ student.lm_head.weight.T / 2).log_softmax(-1).detach()
    log_q = (found.last_hidden_state @ student.lm_head.weight.T / 2).log_softmax(-1)
    terms = (log_p.exp() * (log_p - log_q)).sum(), (found.hidden_states[-1] - wanted).square().mean()
    pulls = []
    for term in terms:
        parts = torch.autograd.grad(term, found.hidden_states[1:], retain_graph=True)
        pulls.append(torch.cat([part.flatten() for part in parts]))
    expected = pulls[0] @ pulls[1] / (pulls[0].norm() * pulls[1].norm())
    assert conflict(student, lambda _: target).item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_is_left_behind(student):
    runner = student.model.block_runner = lambda *arguments: run_block(*arguments)
    with torch.no_grad():
        assert conflict(student, lambda _: 1.0).isfinite()
    assert student.model.block_runner is runner
    assert all(parameter.grad is None for parameter in student.parameters())


def test_there_is_no_conflict_where_nothing_is_aligned_or_no_block_learns(student):
    assert conflict(student, lambda _: 1.0, {"feature_dynamics": {"kind": "cka", "pairs": [[0, 0]]}}) is None
    student.requires_grad_(False)
    assert conflict(student, lambda _: 1.0) is None
