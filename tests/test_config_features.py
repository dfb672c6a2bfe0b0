import pytest
from pydantic import ValidationError

from asnn_goose.config_features import CkaDynamics, HiddenAlignment, PredictionDynamics, SemanticSpikes
from asnn_goose.config_objective import Objective


def test_hidden_alignment_compares_channels_of_all_blocks_as_they_are_unless_told_otherwise():
    plain = HiddenAlignment()
    assert (plain.loss, plain.projector.kind, plain.layer_map.kind, plain.weight) == ("channel", "none", "block", 4.0)
    assert (plain.layer_weights, plain.embeddings, plain.introduce_steps) == (None, False, 0)


def test_an_objective_follows_hidden_states_by_any_of_its_terms():
    parts = (
        {"hidden_alignment": {}}, {"feature_dynamics": {"kind": "cka"}}, {"feature_dynamics": {"kind": "prediction"}},
        {"semantic": {}},
    )  # fmt: skip
    assert not Objective().follows_hidden_states
    assert all(Objective.model_validate(part).follows_hidden_states for part in parts)


def test_recorded_numbers_are_the_defaults():
    recorded = CkaDynamics(kind="cka")
    assert (recorded.weight, recorded.warmup_steps, recorded.kill_ratio) == (0.001, 500, 1.10)
    assert (recorded.pairs, recorded.recorded_offset) == (None, False)
    semantic = SemanticSpikes()
    assert (semantic.weight, semantic.begin_step, semantic.full_step, semantic.threshold) == (0.08, 400, 800, 0.75)
    published = PredictionDynamics(kind="prediction")
    assert (published.trajectory_weight, published.dynamics_weight, published.layers) == (1.0, 1.0, 4)


@pytest.mark.parametrize(
    ("made", "fields", "message"),
    [
        (HiddenAlignment, {"layer_weights": [0, 0]}, "layer_weights are all 0: raise one, or give null"),
        (SemanticSpikes, {"begin_step": 5, "full_step": 5}, "full_step=5 is not behind begin_step=5: raise it"),
        (
            PredictionDynamics,
            {"kind": "prediction", "trajectory_weight": 0, "dynamics_weight": 0},
            "trajectory_weight and dynamics_weight are 0: raise one",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(made, fields, message):
    with pytest.raises(ValidationError, match=message):
        made.model_validate(fields, strict=False)
