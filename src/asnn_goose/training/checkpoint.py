"""Checkpoints that make a resumed run the run that was never stopped.

A checkpoint is a folder: `tensors.safetensors` holds weights, both Adam moments and generator states by
parameter name; `state.json` holds everything else, with the tensors' SHA-256. It is written beside its
place and renamed into it, the one before it being kept as `previous`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW

from asnn_goose.config_training import Precision
from asnn_goose.errors import CheckpointError, MachineError
from asnn_goose.training.sharding import placed_like, whole_tensor

TENSORS, STATE = "tensors.safetensors", "state.json"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class RunState:
    """Where a run stands, without its tensors.

    Attributes:
        step: Optimizer steps done; skipped ones are not among them.
        attempts: Optimizer steps tried.
        stage: Index of the stage it is in; the number of stages once all are done.
        stage_start: Optimizer steps done when that stage began.
        rows_seen: The stage's data cursor: rows consumed by all processes together.
        tokens: Tokens trained on in all stages, those of skipped steps too.
        skipped: Steps skipped for non-finite gradients.
        roll_backs: Times the run went back to a checkpoint.
        best_perplexity: Lowest evaluation perplexity so far; None before the first.
        best_step: Step of that evaluation.
        stopping_perplexity: Perplexity that early stopping wants to see undercut by its min_delta.
        stopping_step: Step of that evaluation.
        seconds: Training time spent, without evaluation and checkpoints.
        precision: Number type the run resolved `auto` to.
        threads: CPU threads of torch; on the CPU the sums depend on it.
        recipe_hash: SHA-256 of the resolved recipe.
        processes: Processes the run began with; they decide how many rows a step takes, whoever resumes it.
        dynamics_baseline: Perplexity that the feature dynamics' kill switch compares with; None before it is armed.
        dynamics_off: Whether that switch has fired.
    """

    step: int
    attempts: int
    stage: int
    stage_start: int
    rows_seen: int
    tokens: int
    skipped: int
    roll_backs: int
    best_perplexity: float | None
    best_step: int | None
    stopping_perplexity: float | None
    stopping_step: int | None
    seconds: float
    precision: Precision
    threads: int
    recipe_hash: str
    processes: int = 1
    dynamics_baseline: float | None = None
    dynamics_off: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back from disk, and where it was."""

    state: RunState
    tensors: dict[str, Tensor]
    path: Path


def training_tensors(module: nn.Module, optimizer: AdamW | None, keep: bool = True) -> dict[str, Tensor]:
    """Weights, Adam moments and generator states by name, whole and on the CPU.

    Without an optimizer only the weights. Shards are gathered one tensor at a time by all processes together, of which
    those that `keep` nothing get nothing.
    """
    parameters = dict(module.named_parameters())
    tensors = {f"weight.{name}": parameter.detach() for name, parameter in parameters.items()}
    if optimizer is not None:
        for name, parameter in parameters.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = value
        tensors["generator.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["generator.cuda"] = torch.cuda.get_rng_state()
    gathered = ((name, whole_tensor(tensor)) for name, tensor in tensors.items())
    return {name: tensor.to("cpu").contiguous() for name, tensor in gathered if keep}


def restore_tensors(tensors: Mapping[str, Tensor], module: nn.Module, optimizer: AdamW | None) -> None:
    """Put a checkpoint's tensors back into module, optimizer and generators.

    Raises:
        CheckpointError: A weight is missing or has another shape.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            stored = tensors.get(f"weight.{name}")
            if stored is None or stored.shape != parameter.shape:
                raise CheckpointError(f"the checkpoint holds no weight {name} of shape {tuple(parameter.shape)}")
            parameter.copy_(placed_like(stored, parameter))
    if optimizer is None:
        return
    for name, parameter in module.named_parameters():
        entries = {key: tensors.get(f"adam.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
        if all(value is not None for value in entries.values()):
            optimizer.state[parameter] = {
                key: value.to(parameter.device) if key == "step" else placed_like(value, parameter)  # type: ignore[union-attr, arg-type]
                for key, value in entries.items()
            }
        else:
            optimizer.state.pop(parameter, None)
    torch.set_rng_state(tensors["generator.cpu"])
    if torch.cuda.is_available() and "generator.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["generator.cuda"])


def save_checkpoint(folder: Path, state: RunState, tensors: Mapping[str, Tensor], keep_previous: bool = True) -> None:
    """Write a checkpoint to `folder`; what stood there becomes `previous` beside it.

    Raises:
        MachineError: The disk is full or the folder cannot be written; what stood there is untouched.
    """
    fresh = folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        save_file(dict(tensors), fresh / TENSORS)
        record = {
            "format": FORMAT_VERSION,
            "sha256": _sha256(fresh / TENSORS),
            "state": asdict(state),
        }
        _write_synced(fresh / STATE, json.dumps(record, indent=2).encode())
        _sync(fresh / TENSORS)
        if folder.exists():
            previous = folder.with_name("previous")
            if keep_previous:
                shutil.rmtree(previous, ignore_errors=True)
                folder.rename(previous)
            else:
                shutil.rmtree(folder)
        fresh.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise MachineError(
            f"cannot write the checkpoint {folder}: {error}; free some space or choose another --out, then --resume"
        ) from error


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint, checking its tensors against their SHA-256.

    Raises:
        CheckpointError: Missing, incomplete or damaged.
    """
    try:
        record: dict[str, Any] = json.loads((folder / STATE).read_text())
        if record["format"] != FORMAT_VERSION:
            raise CheckpointError(f"{folder} has checkpoint format {record['format']}, expected {FORMAT_VERSION}")
        if _sha256(folder / TENSORS) != record["sha256"]:
            raise CheckpointError(f"{folder} is damaged: {TENSORS} does not have the SHA-256 that {STATE} states")
        return Checkpoint(RunState(**record["state"]), load_file(folder / TENSORS), folder)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {folder}: {Path(error.filename).name} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
