"""The end of a run: the best weights become a model directory, and everything measured becomes results.json."""

import base64
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import asnn_goose
from asnn_goose.checks import quotient
from asnn_goose.config import Recipe
from asnn_goose.errors import MachineError
from asnn_goose.evaluation.efficiency import model_flops_utilization, teacher_cost, training_flops_per_token
from asnn_goose.evaluation.mac_counter import count_macs
from asnn_goose.evaluation.student import probe_spikes, site_encoders, student_perplexity
from asnn_goose.measurements import curve, curves_from_metrics, site_curve
from asnn_goose.models.build import fresh_student
from asnn_goose.models.folding import folded
from asnn_goose.models.loading import quiet_transformers
from asnn_goose.models.plan import spike_fed_mac_share
from asnn_goose.models.student import GooseForCausalLM
from asnn_goose.presets import recipe_yaml
from asnn_goose.report.figures import training_figure
from asnn_goose.report.page import report_page
from asnn_goose.results import (
    Controls,
    Counters,
    Figure,
    Hardware,
    Memory,
    ModelResult,
    Perplexities,
    Protocol,
    Ratio,
    Results,
    SiteSpikes,
    SpikeResult,
    Stage,
    Temperature,
    Throughput,
)
from asnn_goose.run_dir import write_text_atomically
from asnn_goose.training.checkpoint import load_checkpoint, restore_tensors
from asnn_goose.training.judge import judge
from asnn_goose.training.loop import PROBE_TOKENS, TrainingLoop
from asnn_goose.training.memory import peak_memory_bytes
from asnn_goose.training.samples import sample_side_by_side
from asnn_goose.training.stages import plan_stages

TRAINING_FIGURE = "training"


def finish_run(recipe: Recipe, loop: TrainingLoop, console: Console) -> Results:
    """Export the best weights, gather the results, draw the figure, write the report; one process does it alone.

    Raises:
        MachineError: The disk is full; the checkpoints stay and --resume finishes the run.
    """
    best = load_checkpoint(loop.material.folder.checkpoints / "best")
    if loop.material.sharded is None:
        # An earlier stage's best may hold no projector, or another.
        restore_tensors(best.tensors, nn.ModuleDict({"student": loop.material.student}), optimizer=None)
    else:
        take_whole_student(recipe, loop, best.tensors)
    material, folder = loop.material, loop.material.folder
    export_model(material.student, material.teacher.tokenizer, folder.model)
    metrics = folder.metrics()
    results = judge(recipe, loop, gather_results(recipe, loop, metrics), metrics)
    with console.status("continuing held-out text with teacher and student"):
        samples = sample_side_by_side(material.teacher, material.student, material.beginnings, recipe.training.seed)
    results = results.model_copy(update={"samples": samples})
    figure = training_figure(metrics, results)
    folder.figures.mkdir(exist_ok=True)
    filename = f"{TRAINING_FIGURE}.png"
    (folder.figures / filename).write_bytes(figure)
    encoded = Figure(filename=filename, base64=base64.b64encode(figure).decode())
    results = results.model_copy(update={"figures": {TRAINING_FIGURE: encoded}})
    write_text_atomically(folder.report_path, report_page(results, folder.environment(), recipe_yaml(recipe)))
    folder.write_results(results)
    return results


def take_whole_student(recipe: Recipe, loop: TrainingLoop, tensors: Mapping[str, Tensor]) -> None:
    """Give the loop a whole student with a checkpoint's weights in place of a sharded one.

    Its perplexity is measured anew, since a sharded student was evaluated in the precision that it trained in.
    """
    student = fresh_student(loop.material.student.config, seed=0).to(loop.accelerator.device)
    restore_tensors(tensors, nn.ModuleDict({"student": student}), optimizer=None)
    loop.material = replace(loop.material, student=student, sharded=None)
    found = student_perplexity(student, loop.material.windows, recipe.training.rows)
    loop.state = replace(loop.state, best_perplexity=found.perplexity)


def export_model(student: GooseForCausalLM, tokenizer: Any, target: Path) -> None:
    """Save student and tokenizer as a directory that the Auto classes load, complete or not at all.

    Raises:
        MachineError: The disk is full or the folder cannot be written.
    """
    fresh = target.with_name(f".{target.name}.writing")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        with quiet_transformers():
            student.eval().save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise MachineError(f"cannot write the model to {target}: {error}; free some space, then --resume") from error


def utilization(recipe: Recipe, loop: TrainingLoop, tokens_per_second: float | None) -> float | None:
    """Share of the devices' peak arithmetic that the run used, its stages weighed by their tokens."""
    teacher, processes = loop.material.teacher, loop.accelerator.num_processes
    plans = plan_stages(recipe, processes)
    # Linear in the window, so the mean window gives the mean cost.
    window = round(sum(plan.tokens * plan.window for plan in plans) / sum(plan.tokens for plan in plans))
    cost = teacher_cost(teacher.model.config, teacher.parameters)
    flops = training_flops_per_token(loop.material.student.config, cost, window)
    return model_flops_utilization(flops, tokens_per_second, loop.accelerator.device, processes)


def gather_results(
    recipe: Recipe,
    loop: TrainingLoop,
    metrics: list[dict[str, Any]],
) -> Results:
    """Everything the run measured; the student carries its best weights here."""
    state, student, teacher = loop.state, loop.material.student, loop.material.teacher
    evaluations = curve(metrics, "evaluation_perplexity").values
    tokens, teacher_perplexity = state.tokens, loop.material.teacher_perplexity
    stages = stage_results(metrics, teacher_perplexity)
    tokens_per_second = tokens / state.seconds if state.seconds > 0 else None
    peak = peak_memory_bytes(loop.accelerator.device)
    parameters = student.num_parameters()
    environment = loop.material.folder.environment()
    spikes = spike_result(loop, metrics)
    return Results(
        version=asnn_goose.__version__,
        recipe=environment["recipe"],
        recipe_hash=state.recipe_hash,
        seed=recipe.training.seed,
        platform=environment["platform_kind"],
        stop_reason=stages[-1].stop_reason or "budget",
        stages=stages,
        controls=control_results(metrics),
        protocol=protocol_result(loop),
        teacher=ModelResult(name=teacher.name, parameters=teacher.parameters, perplexity=teacher_perplexity),
        student=ModelResult(name="model", parameters=parameters, perplexity=state.best_perplexity),
        perplexities=Perplexities(
            best=state.best_perplexity, best_step=state.best_step, last=evaluations[-1] if evaluations else None
        ),
        ratio=Ratio(to_teacher=quotient(state.best_perplexity, teacher_perplexity)),
        compression_ratio=quotient(teacher.parameters, parameters),
        spikes=spikes,
        temperature=Temperature(final=next(reversed(curve(metrics, "temperature").values), None)),
        throughput=Throughput(
            tokens_per_second=tokens_per_second,
            mfu=utilization(recipe, loop, tokens_per_second),
        ),
        memory=Memory(peak_bytes=peak),
        hardware=Hardware(
            device=device_name(loop.accelerator.device, environment),
            peak_memory_bytes=peak,
            mean_memory_bytes=loop.mean_memory_bytes,
            seconds=state.seconds,
            tokens=tokens,
        ),
        counters=Counters(
            steps_done=state.step,
            steps_skipped=state.skipped,
            rolled_back=state.roll_backs,
            stopped_early=stages[-1].stop_reason == "early_stopping",
        ),
        curves=curves_from_metrics(metrics),
    )


def stage_results(metrics: list[dict[str, Any]], teacher_perplexity: float) -> tuple[Stage, ...]:
    """What each stage reached; of a stage that ended twice, because a run was cut short there, the last end."""
    ends = {line["stage_end"]: line for line in metrics if "stage_end" in line}
    return tuple(
        Stage(
            name=name,
            perplexity=line["stage_perplexity"],
            ratio_to_teacher=quotient(line["stage_perplexity"], teacher_perplexity),
            steps=line["stage_steps"],
            tokens=line["stage_tokens"],
            stop_reason=line["stage_reason"],
        )
        for name, line in ends.items()
    )


def control_results(metrics: list[dict[str, Any]]) -> Controls:
    """The controls that were measured."""
    return Controls(**{line["control"]: line["control_perplexity"] for line in metrics if "control" in line})


def protocol_result(loop: TrainingLoop) -> Protocol:
    """The evaluation protocol as results.json states it."""
    windows, teacher = loop.material.windows, loop.material.teacher
    return Protocol(
        kind=windows.kind,
        tokenizer=teacher.name,
        window=windows.rows.window,
        stride=windows.rows.stride,
        tokens=len(windows.rows.tokens),
        scored_tokens=windows.scored_tokens,
    )


def spike_result(loop: TrainingLoop, metrics: list[dict[str, Any]]) -> SpikeResult:
    """Spike statistics of the saved weights on the probe text, with each site's density over the run.

    What linear layers read is counted with amplitudes folded, as an event-driven product would have it.
    """
    student = loop.material.student
    ids = loop.material.windows.probe(PROBE_TOKENS).to(loop.accelerator.device)
    layers = []
    for name, figures in probe_spikes(student, ids).items():
        layer, site = name.removeprefix("layer_").split(".")
        history = site_curve(metrics, name, "density")
        layers.append(SiteSpikes(layer=int(layer), site=site, history=history, **figures))
    counted = count_macs(folded(student), ids)
    return SpikeResult(
        density=_mean([entry.density for entry in layers]),
        events_per_activation=_mean([entry.events_per_activation for entry in layers]),
        spike_fed_mac_share=spike_fed_mac_share(student.config),
        measured_spike_fed_mac_share=counted.spike_fed_share(),
        additions_per_token=counted.additions_per_token,
        silent_layers=counted.silent_layers,
        amplitudes=spike_amplitudes(student),
        layers=tuple(layers),
    )


def spike_amplitudes(student: GooseForCausalLM) -> dict[str, dict[str, float | None]]:
    """Learned amplitude of every encoder by layer and site, a channel-wise one as its mean; the head follows last."""
    amplitudes: dict[str, dict[str, float | None]] = {}
    for name, encoder in site_encoders(student).items():
        amplitude = encoder.bounded_amplitude()
        if amplitude is not None:
            layer, site = name.split(".")
            amplitudes.setdefault(layer, {})[site] = float(amplitude.detach().mean())
    return amplitudes


def device_name(device: torch.device, environment: Mapping[str, Any]) -> str:
    """The GPU's name, or the CPU's as the environment has it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(environment.get("cpu", device.type))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
