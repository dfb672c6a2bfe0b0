import pytest
import torch

from asnn_goose.evaluation.efficiency import model_flops_utilization, training_flops_per_token
from asnn_goose.models.configuration import GooseConfig

CONFIG = GooseConfig(vocab_size=100, hidden_size=10, num_hidden_layers=2)
# Four square projections and two of 10 x 40 in each of two blocks, and a head of 10 x 100.
MACS = 2 * (4 * 100 + 2 * 400) + 1000


def test_a_trained_token_costs_six_flops_a_student_mac_and_two_a_teacher_weight() -> None:
    assert training_flops_per_token(CONFIG, teacher_parameters=7) == 6 * MACS + 14


def test_utilization_is_not_invented_where_the_peak_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_flops_utilization(CONFIG, 7, 1000.0, torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Other GPU")
    assert model_flops_utilization(CONFIG, 7, 1000.0, torch.device("cuda")) is None


def test_utilization_is_flops_done_over_the_data_sheets_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    found = model_flops_utilization(CONFIG, 7, 1e6, torch.device("cuda"))
    assert found == pytest.approx(1e6 * (6 * MACS + 14) / 989e12)
