import pytest
import torch
from transformers import GPT2Config, Qwen3Config

from asnn_goose.evaluation.efficiency import (
    TeacherCost,
    model_flops_utilization,
    peak_flops_per_second,
    teacher_cost,
    training_flops_per_token,
)
from asnn_goose.models.configuration import GooseConfig

CONFIG = GooseConfig(vocab_size=100, hidden_size=10, num_hidden_layers=2)
# Four square projections and two of 10 x 40 in each of two blocks, and a head of 10 x 100.
MACS = 2 * (4 * 100 + 2 * 400) + 1000


def test_a_trained_token_costs_six_flops_a_student_mac_and_two_a_teacher_weight_and_attention() -> None:
    found = training_flops_per_token(CONFIG, TeacherCost(parameters=7, layers=3, attention_width=5), window=8)
    assert found == 6 * MACS + 14 + 4 * 3 * 5 * 8


def test_attention_is_as_wide_as_its_heads_together() -> None:
    assert teacher_cost(GPT2Config(n_embd=12, n_head=3, n_layer=2), 9) == TeacherCost(9, 2, 12)
    wide = Qwen3Config(hidden_size=12, num_attention_heads=3, head_dim=8, num_hidden_layers=2)
    assert teacher_cost(wide, 9) == TeacherCost(9, 2, 24)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", None),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA RTX 4000 Ada", None),
    ],
)
def test_a_peak_is_that_of_the_very_model(name: str, peak: float | None) -> None:
    assert peak_flops_per_second(name) == peak


def test_utilization_is_not_invented_where_the_peak_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_flops_utilization(1, 1000.0, torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Other GPU")
    assert model_flops_utilization(1, 1000.0, torch.device("cuda")) is None


def test_utilization_is_flops_done_over_the_peak_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert model_flops_utilization(500, 1e6, torch.device("cuda")) == pytest.approx(1e6 * 500 / 989e12)
    assert model_flops_utilization(500, 1e6, torch.device("cuda"), processes=2) == pytest.approx(1e6 * 250 / 989e12)
