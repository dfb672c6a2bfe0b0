"""The student that has learned nothing: what its spikes say of the teacher, random weights say too."""

import copy

import torch
from torch import nn

from asnn_goose.evaluation.observe import encoders_by_place
from asnn_goose.models.build import fresh_student
from asnn_goose.models.student import GooseForCausalLM


def untrained_student(student: GooseForCausalLM, seed: int) -> GooseForCausalLM:
    """A student of the same configuration, device and number type with fresh weights, in evaluation mode.

    Nothing of the teacher is in it. Threshold factors that are weights are the given student's, so that a comparison
    is one of weights and not of how often they let spikes through; amplitudes, which are learned as weights are,
    start anew. The same for the same seed; global generators are left as they were.
    """
    devices = range(torch.cuda.device_count()) if student.device.type == "cuda" else ()
    # Seeding the global generator seeds every GPU's, too.
    with torch.random.fork_rng(devices=list(devices)):
        made = fresh_student(copy.deepcopy(student.config), seed)
    made.to(student.device, student.dtype).eval()
    trained = encoders_by_place(student)
    with torch.no_grad():
        for place, encoder in encoders_by_place(made).items():
            factor = trained[place].alpha
            if isinstance(encoder.alpha, nn.Parameter) and isinstance(factor, nn.Parameter):
                encoder.alpha.copy_(factor)
    return made
