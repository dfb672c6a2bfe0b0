"""How well a run uses its machine: model FLOPs utilization."""

import re
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.plan import macs_per_token

PEAK_FLOPS_PER_SECOND = {
    "B200": 2250e12, "H200": 989e12, "GH200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "A100": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A10": 125e12, "T4": 65e12, "V100": 125e12,
    "RTX 5090": 209e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip
"""Dense peak of each GPU in bfloat16 (float16 where it has none) with float32 sums, in FLOP/s, by its data sheet."""


@dataclass(frozen=True)
class TeacherCost:
    """What a teacher's forward pass depends on: its weights, and the layers and width of its attention."""

    parameters: int
    layers: int
    attention_width: int


def teacher_cost(config: PreTrainedConfig, parameters: int) -> TeacherCost:
    """The cost of a transformer of this configuration."""
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return TeacherCost(parameters, config.num_hidden_layers, config.num_attention_heads * head_width)


def training_flops_per_token(student: GooseConfig, teacher: TeacherCost, window: int) -> int:
    """FLOPs of one trained token of a window, all that a model needs and none that an implementation adds.

    Forward and backward of the student (6 a MAC); forward of the teacher (2 a weight) with its attention, whose scores
    and sums over `window` tokens take 4 FLOPs a channel and layer each (Chowdhery et al. 2022, appendix B).
    """
    attention = 4 * teacher.layers * teacher.attention_width * window
    return 6 * macs_per_token(student) + 2 * teacher.parameters + attention


def peak_flops_per_second(name: str) -> float | None:
    """The dense peak of a GPU by the name that its driver gives, None for one that is not in the table."""
    words = re.split(r"[^A-Za-z0-9]+", name)
    for model, peak in PEAK_FLOPS_PER_SECOND.items():
        if all(word in words for word in model.split()):
            return peak
    return None


def model_flops_utilization(
    flops_per_token: int, tokens_per_second: float | None, device: torch.device, processes: int = 1
) -> float | None:
    """Share of the devices' peak that training used, 0 to 1; None where the peak is not known."""
    if device.type != "cuda" or tokens_per_second is None:
        return None
    peak = peak_flops_per_second(torch.cuda.get_device_name(device))
    return None if peak is None else tokens_per_second * flops_per_token / (peak * processes)
