"""What is measured on a student while it trains and when it is done: perplexity and a probe of its spikes."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from asnn_goose.evaluation.perplexity import EvaluationWindows, PerplexityResult, measure_perplexity
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.models.teacher import body_hidden_states
from asnn_goose.spikes.encoder import SpikeEncoder
from asnn_goose.spikes.statistics import encoder_statistics, layer_statistics


def student_perplexity(
    student: GooseForCausalLM,
    windows: EvaluationWindows,
    batch_size: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> PerplexityResult:
    """Evaluation perplexity of the student in its weights' own number type, outside autocast."""
    was_training = student.training
    student.eval()
    head = LinearHead(student.lm_head.weight, student.lm_head.bias)
    result = measure_perplexity(
        lambda ids: body_hidden_states(student.model, ids), head, windows, batch_size, on_progress
    )
    student.train(was_training)
    return result


def probe_spikes(student: GooseForCausalLM, ids: Int[Tensor, "batch time"]) -> dict[str, dict[str, float]]:
    """What every site did in one uncompiled forward pass of the given rows without gradients, and what it has learned.

    By site, the figures of `SiteStatistics` and `EncoderStatistics`; the device is waited for once.
    """
    was_training = student.training
    student.eval()
    with torch.no_grad():
        spikes = student.model(input_ids=ids, output_spikes=True).spikes
    student.train(was_training)
    found = {name: vars(seen) for name, seen in layer_statistics(spikes).items()}
    encoders = site_encoders(student)
    found = {name: seen | vars(encoder_statistics(encoders[name])) for name, seen in found.items()}
    if not found:
        return {}
    every = [value.to(ids.device, torch.float64) for seen in found.values() for value in seen.values()]
    numbers = iter(torch.stack(every).tolist())
    return {name: {statistic: next(numbers) for statistic in seen} for name, seen in found.items()}


def site_encoders(student: GooseForCausalLM) -> dict[str, SpikeEncoder]:
    """Every encoder by the name that `layer_statistics` gives its site; the head follows the last block."""
    encoders = {}
    for path, module in student.model.named_modules():
        if isinstance(module, SpikeEncoder):
            *_, site = parts = path.split(".")
            layer = parts[1] if parts[0] == "layers" else len(student.model.layers)
            encoders[f"layer_{layer}.{site}"] = module
    return encoders
