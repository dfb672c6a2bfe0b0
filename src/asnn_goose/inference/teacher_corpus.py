"""Text that a teacher writes itself, generated once into the token cache: what a student of its own can imitate best.

Batches are written one at a time, each with a seed of its own, and each becomes a file of its own, so that an
interrupted generation goes on where it stopped and ends with the same tokens. They depend on the kind of device, as
random numbers and the order of sums do; what one machine has written is read, and gone on with, by any other.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, Integer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel

from asnn_goose.config_text import TeacherSamples
from asnn_goose.data.cache import atomic_directory, atomic_file, cache_directory
from asnn_goose.data.shuffling import shuffled_places
from asnn_goose.data.token_cache import read_cached_tokens, token_dtype, write_tokens
from asnn_goose.data.tokens import TokenRows, end_of_text_token
from asnn_goose.errors import ConfigError, DataError
from asnn_goose.inference.continuations import WriteBatch, batch_writer, has_sampler, join_texts
from asnn_goose.inference.sampling import Nucleus
from asnn_goose.models.teacher import Teacher

logger = logging.getLogger(__name__)

CORPUS_FORMAT = 1
"""Part of the cache key; raised when the same options would give other tokens."""
GPU_ROWS, CPU_ROWS = 1024, 32
"""Texts that are written at a time where the recipe does not say."""
PROBED_WEIGHTS = 64
"""Numbers of each weight tensor by which a teacher is known again."""
FORGOTTEN = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Entries of a configuration that say nothing of what the model computes."""
BATCH_KEY = 2
"""First spawn key of the batches' seeds, apart from those of a mixture."""
LINE_SECONDS = 30.0
"""Away from a terminal, the progress is a line every so often."""


@dataclass(frozen=True, eq=False)
class _Job:
    """What decides the tokens: the prompts, how they are continued, and where the batches lie meanwhile."""

    teacher: Teacher
    prompts: TokenRows
    options: TeacherSamples
    rows_per_batch: int
    seed: int
    end: int
    key: str

    @property
    def batches(self) -> Path:
        """Where the batches lie until all are written."""
        return cache_directory() / "teacher_samples" / self.key


def teacher_samples(
    teacher: Teacher, prompt_text: Integer[np.ndarray, " tokens"], options: TeacherSamples, seed: int, console: Console
) -> Integer[np.ndarray, " samples"]:
    """What a teacher writes after the beginnings of a text's rows, as one row of tokens, memory-mapped from the cache.

    Each text is a prompt and its continuation, `options.length` tokens together, or shorter if it ends with the
    end-of-text token; the texts stand one behind the other without padding, cut after `options.tokens`. When all
    prompts have been used they begin again in another order. Llama-family teachers write through
    `ContinuationSampler`, others through transformers' `generate`, both from the nucleus that `Nucleus` describes.

    Args:
        teacher: Who writes; on a GPU this is far faster.
        prompt_text: Token ids of the text that the prompts are taken from, one every `options.length` tokens.
        options: How much is written, and how.
        seed: Seed of the prompts' order and of the sampling.
        console: Where the progress is shown.

    Raises:
        ConfigError: The texts are longer than the teacher's positions.
        DataError: The prompts' text is shorter than one prompt, or the tokenizer has no end-of-text token.
        MachineError: The cache cannot be written.
    """
    job = _checked_job(teacher, prompt_text, options, seed)
    directory = cache_directory() / "tokens" / job.key
    tokens = read_cached_tokens(directory)
    if tokens is None:
        paths = _write_batches(job, console)
        with atomic_directory(directory) as temporary:
            write_tokens(temporary, _leading_tokens(paths, options.tokens), _dtype(teacher))
        tokens = read_cached_tokens(directory)
    assert tokens is not None, f"the tokens just written to {directory} cannot be read"
    shutil.rmtree(job.batches, ignore_errors=True)
    return tokens


def teacher_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256, in hex, of a model's configuration and of a few numbers of each of its weight tensors."""
    described = {name: value for name, value in model.config.to_dict().items() if name not in FORGOTTEN}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        count = min(PROBED_WEIGHTS, weight.numel())
        places = torch.arange(count, device=weight.device) * weight.numel() // max(count, 1)
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().flatten()[places].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _checked_job(
    teacher: Teacher, prompt_text: Integer[np.ndarray, " tokens"], options: TeacherSamples, seed: int
) -> _Job:
    # A model without learned or rotary positions states no limit.
    positions = getattr(teacher.model.config, "max_position_embeddings", None)
    if positions is not None and options.length > positions:
        raise ConfigError(
            f"length={options.length} of teacher_samples is more than the {positions} positions of the teacher "
            f"{teacher.name}; give length={positions} or less"
        )
    end = end_of_text_token(teacher.tokenizer)
    prompts = TokenRows(prompt_text, options.prompt_tokens, options.length)
    if len(prompts) < 1:
        raise DataError(
            f"the prompts of teacher_samples have {len(prompt_text)} tokens, fewer than "
            f"prompt_tokens={options.prompt_tokens}; give more text or shorter prompts"
        )
    rows = options.rows_per_batch or (GPU_ROWS if teacher.model.device.type == "cuda" else CPU_ROWS)
    return _Job(teacher, prompts, options, rows, seed, end, _cache_key(teacher, prompt_text, options, rows, seed))


def _cache_key(
    teacher: Teacher, prompt_text: Integer[np.ndarray, " tokens"], options: TeacherSamples, rows: int, seed: int
) -> str:
    identity = [teacher.name, teacher.vocabulary_hash, teacher_fingerprint(teacher.model), has_sampler(teacher.model)]
    # Where the prompts come from does not count, only which they are.
    chosen = options.model_dump(mode="json", exclude={"prompts", "rows_per_batch"})
    digest = hashlib.sha256(json.dumps([CORPUS_FORMAT, identity, chosen, rows, seed], sort_keys=True).encode())
    digest.update(np.ascontiguousarray(prompt_text).data)
    return digest.hexdigest()


def _dtype(teacher: Teacher) -> np.dtype[np.generic]:
    # The head may have more rows than the tokenizer has tokens, and any of them can be drawn.
    return token_dtype(teacher.vocabulary_size - 1)


def _write_batches(job: _Job, console: Console) -> list[Path]:
    """The files of all batches that are needed, those that are missing written now."""
    model, options = job.teacher.model, job.options
    nucleus = Nucleus(options.temperature, options.top_p, options.candidates)
    write = batch_writer(model, job.rows_per_batch, options.length, nucleus, job.end)
    paths: list[Path] = []
    done = 0
    with _shown_progress(console, job) as advance:
        while done < options.tokens:
            path = job.batches / f"{len(paths):06d}.npy"
            count = _stored_tokens(path)
            is_new = count is None
            if count is None:
                tokens = _write_batch(job, write, len(paths))
                with atomic_file(path) as temporary, temporary.open("wb") as file:
                    np.save(file, tokens.astype(_dtype(job.teacher)))
                count = len(tokens)
            paths.append(path)
            done += count
            advance(count, is_new)
    if model.device.type == "cuda":
        # The sampler's cache and graphs go back to the device before training starts.
        del write
        torch.cuda.empty_cache()
    return paths


def _write_batch(job: _Job, write: WriteBatch, batch: int) -> Int64[np.ndarray, " tokens"]:
    numbers = np.arange(batch * job.rows_per_batch, (batch + 1) * job.rows_per_batch, dtype=np.int64)
    prompts = job.prompts.take(shuffled_places(len(job.prompts), numbers, job.seed))
    seed = int(np.random.SeedSequence(job.seed, spawn_key=(BATCH_KEY, batch)).generate_state(1, np.uint64)[0])
    continuations = write(torch.from_numpy(prompts).to(job.teacher.model.device), seed)
    return join_texts(prompts, continuations.cpu().numpy(), job.end)


def _stored_tokens(path: Path) -> int | None:
    """How many tokens an earlier process left of a batch; None if it did not get so far."""
    try:
        return len(np.load(path, mmap_mode="r"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("the teacher's texts in %s are damaged (%s) and are written again", path, error)
        return None


def _leading_tokens(paths: list[Path], tokens: int) -> Iterator[Integer[np.ndarray, " piece"]]:
    for path in paths:
        piece = np.load(path)[:tokens]
        tokens -= len(piece)
        yield piece


@contextmanager
def _shown_progress(console: Console, job: _Job) -> Iterator[Callable[[int, bool], None]]:
    """Gives what is called with the tokens of each batch, and whether they are new; shows a bar, or lines."""
    total, name = job.options.tokens, job.teacher.name
    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"), TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{name} writes", total=total, figures="")
        done = written = 0
        started = shown = time.monotonic()

        def advance(count: int, is_new: bool) -> None:
            """Show the batch's tokens; those of an earlier process say nothing of the speed."""
            nonlocal done, written, shown
            done, written, now = done + count, written + count * is_new, time.monotonic()
            speed = f"{written / max(now - started, 1e-9):,.0f} tokens/s" if written else "from an earlier process"
            figures = f"{min(done, total):,}/{total:,} tokens · {speed}"
            progress.update(task, completed=done, figures=figures)
            if done >= total or (not console.is_terminal and now - shown >= LINE_SECONDS):
                shown = now
                console.print(f"text written by {name}: {figures}", highlight=False)

        yield advance
