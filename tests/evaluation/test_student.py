import numpy as np
import pytest
import torch

from asnn_goose.data.tokens import TokenRows
from asnn_goose.evaluation.perplexity import EvaluationWindows
from asnn_goose.evaluation.student import probe_spikes, site_encoders, student_perplexity
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.student import GooseForCausalLM

ROWS = TokenRows(np.arange(32) % 11, window=8, stride=8)


@pytest.fixture
def student() -> GooseForCausalLM:
    torch.manual_seed(0)
    return GooseForCausalLM(
        GooseConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, max_position_embeddings=8)
    ).train()


def test_perplexity_is_that_of_the_models_own_loss(student: GooseForCausalLM) -> None:
    ids = torch.from_numpy(ROWS.take(np.arange(4)))
    found = student_perplexity(student, EvaluationWindows(ROWS, "standard", ""), batch_size=3)
    assert found.loss_nats == pytest.approx(student(ids, labels=ids).loss.item(), rel=1e-5)


def test_measuring_leaves_the_student_in_training_mode(student: GooseForCausalLM) -> None:
    student_perplexity(student, EvaluationWindows(ROWS, "standard", ""), batch_size=4)
    probe_spikes(student, torch.zeros(1, 4, dtype=torch.int64))
    assert student.training


def test_the_probe_covers_every_site_of_every_layer(student: GooseForCausalLM) -> None:
    found = probe_spikes(student, torch.from_numpy(ROWS.take(np.arange(2))))
    assert set(found) == {"layer_0.k", "layer_0.v", "layer_1.k", "layer_1.v"}
    assert all(0.0 < entry["density"] < 1.0 and entry["alpha"] == 1.0 for entry in found.values())


def test_a_student_whose_head_reads_spikes_is_measured_as_its_own_loss_is() -> None:
    torch.manual_seed(0)
    spikes = {"sites": "all+head", "levels": 3, "scale": "token", "amplitude": "channel"}
    shape = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "max_position_embeddings": 8}
    student = GooseForCausalLM(GooseConfig(**shape, spikes=spikes))
    ids = torch.from_numpy(ROWS.take(np.arange(4)))
    found = student_perplexity(student, EvaluationWindows(ROWS, "standard", ""), batch_size=3)
    assert found.loss_nats == pytest.approx(student(ids, labels=ids).loss.item(), rel=1e-5)
    assert set(site_encoders(student)) == set(probe_spikes(student, ids))
    assert site_encoders(student)["layer_2.head_in"] is student.model.encoders["head_in"]
