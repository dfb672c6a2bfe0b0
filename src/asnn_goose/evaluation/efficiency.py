"""How well a run uses its machine: model FLOPs utilization."""

import torch

from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.plan import macs_per_token

# Dense bf16 peak of the vendor's data sheets, in FLOP/s. Utilization is null on any other device.
PEAK_FLOPS_PER_SECOND = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "T4": 65e12}


def training_flops_per_token(student: GooseConfig, teacher_parameters: int) -> int:
    """FLOPs of one trained token: forward and backward of the student (6 a MAC), forward of the teacher (2)."""
    return 6 * macs_per_token(student) + 2 * teacher_parameters


def model_flops_utilization(
    student: GooseConfig, teacher_parameters: int, tokens_per_second: float | None, device: torch.device
) -> float | None:
    """Share of the device's bf16 peak that training used, 0 to 1; None where the peak is not known."""
    if device.type != "cuda" or tokens_per_second is None:
        return None
    name = torch.cuda.get_device_name(device)
    peaks = [peak for model, peak in PEAK_FLOPS_PER_SECOND.items() if model in name]
    if not peaks:
        return None
    return tokens_per_second * training_flops_per_token(student, teacher_parameters) / peaks[0]
