"""Makes the pocket teacher and its text: sample a corpus, select what ships, train a tokenizer and a model, judge it.

Each phase writes a JSON summary when it is done, and is skipped when that is there; delete it to run the phase again.
`--tiny` runs all phases on a CPU in less than a minute, to show that they work.
"""

import argparse
import json
import logging
import lzma
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor
from transformers import AutoTokenizer, GPT2LMHeadModel, PreTrainedTokenizerBase

from asnn_goose.config_text import PackedRows
from asnn_goose.data.tokens import TokenRows, tokenize_documents
from asnn_goose.inference.sampling import Nucleus
from asnn_goose.models.loading import load_causal_lm, quiet_transformers
from pocket.card import LICENSE_NOTE, model_card
from pocket.corpus import SamplingPlan, clean_corpus, sample_texts
from pocket.judge import evaluated_perplexities, judge_teacher
from pocket.selection import compress, read_documents, read_shipped, select_documents, write_documents
from pocket.teacher import TeacherShape, TrainingPlan, make_teacher, train_teacher, train_tokenizer

logger = logging.getLogger("make_pocket_teacher")

TINY = {
    "rows": 24, "prompts": 200, "new_tokens": 80, "target_tokens": 1, "ship_bytes": 4_000, "vocabulary": 320,
    "window": 32, "width": 32, "layers": 2, "batch": 8, "epochs": 20, "minutes_train": 0.1, "evaluation_steps": 10,
}  # fmt: skip
"""What `--tiny` puts in the place of the defaults."""

PHASES = ("sample", "clean", "select", "tokenizer", "train", "judge")

JUDGE_MINUTES = 0.75
"""What `--minutes-total` leaves for what comes after training."""
LEAST_TRAINING_MINUTES = 0.5


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line's choices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for everything that is made")
    add("--archive", type=Path, help="tar file for what ships: model, selection, summaries")
    add("--seed", type=int, default=0, help="seed of all phases")
    add("--tiny", action="store_true", help="a dry run on a CPU")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to sample and train")
    add("--model", default="smollm2", help="what writes the corpus: a Llama-family chat model in SmolLM2's format")
    add("--prompts", type=int, default=18_000, help="different prompts")
    add("--rows", type=int, default=4096, help="texts sampled at a time")
    add("--prompt-tokens", type=int, default=96, help="longest prompt in tokens")
    add("--new-tokens", type=int, default=280, help="longest sampled text in tokens")
    add("--temperature", type=float, default=0.75, help="temperature of sampling")
    add("--top-p", type=float, default=0.95, help="probability of the nucleus that is sampled from")
    add("--target-tokens", type=int, default=30_000_000, help="tokens to sample")
    add("--minutes-sample", type=float, default=4.0, help="longest time for sampling")
    add("--ship-bytes", type=int, default=2_500_000, help="largest size of the compressed selection")
    add("--vocabulary", type=int, default=4096, help="entries of the tokenizer")
    add("--window", type=int, default=512, help="positions of the teacher")
    add("--width", type=int, default=256, help="width of the teacher")
    add("--layers", type=int, default=4, help="layers of the teacher")
    add("--batch", type=int, default=128, help="windows in a training step")
    add("--learning-rate", type=float, default=3e-3, help="peak learning rate")
    add("--weight-decay", type=float, default=0.1, help="decay of matrices")
    add("--dropout", type=float, default=0.05, help="part of the values that dropout drops in training")
    add("--epochs", type=float, default=30.0, help="most passes over the corpus")
    add("--minutes-train", type=float, default=4.0, help="longest time for training")
    add("--minutes-total", type=float, help="training ends in time for the whole run to end by then")
    add("--evaluation-steps", type=int, default=500, help="training steps between evaluations")
    add("--until", choices=PHASES, default=PHASES[-1], help="the last phase to run")
    add("--compile", action="store_true", help="try torch.compile for training")
    add("--trigram-tokens", type=int, default=40_000_000, help="most tokens the trigram model counts")
    if "--tiny" in arguments:
        parser.set_defaults(**TINY)
    return parser.parse_args(arguments)


def main() -> None:
    """Run the phases that are not done."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    choices = read_arguments(sys.argv[1:])
    choices.started = time.monotonic()
    choices.out.mkdir(parents=True, exist_ok=True)
    for name, phase in zip(PHASES, (sample, clean, select, tokenizer, train, judge), strict=True):
        run_phase(name, phase, choices)
        if name == choices.until:
            break
    if choices.archive is not None:
        pack(choices.out, choices.archive)


def run_phase(name: str, phase: Callable[[argparse.Namespace], dict[str, Any]], choices: argparse.Namespace) -> None:
    """Run a phase, unless its summary is there, and write its summary."""
    summary = choices.out / f"{name}.json"
    if summary.exists():
        logger.info("%s: done before", name)
        return
    started = time.monotonic()
    logger.info("%s: begins", name)
    with quiet_transformers():
        figures = {**phase(choices), "phase_seconds": round(time.monotonic() - started, 1)}
    summary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    shown = {key: value for key, value in figures.items() if not isinstance(value, list | dict)}
    logger.info("%s: done: %s", name, json.dumps(shown))


def sample(choices: argparse.Namespace) -> dict[str, Any]:
    """Write texts.jsonl."""
    dtype = torch.bfloat16 if choices.device.startswith("cuda") else torch.float32
    loaded = load_causal_lm(choices.model, dtype, choices.device)
    logger.info("sample: %s is loaded", choices.model)
    plan = SamplingPlan(
        prompts=choices.prompts, rows=choices.rows, prompt_tokens=choices.prompt_tokens, new_tokens=choices.new_tokens,
        target_tokens=choices.target_tokens, minutes=choices.minutes_sample, seed=choices.seed,
        nucleus=Nucleus(choices.temperature, choices.top_p),
    )  # fmt: skip
    figures = sample_texts(loaded, plan, choices.out / "texts.jsonl")
    del loaded
    if choices.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return figures


def clean(choices: argparse.Namespace) -> dict[str, Any]:
    """Write documents.jsonl."""
    return clean_corpus(choices.out / "texts.jsonl", choices.out / "documents.jsonl")


def select(choices: argparse.Namespace) -> dict[str, Any]:
    """Write selection/, which ships, and corpus.jsonl, which the teacher is trained on."""
    folder = choices.out / "selection"
    folder.mkdir(exist_ok=True)
    selection = select_documents(read_documents(choices.out / "documents.jsonl"), choices.seed, choices.ship_bytes)
    sizes = {}
    for name, documents in (("train", selection.train), ("held_out", selection.held_out)):
        content = compress(documents)
        (folder / f"pocket_{name}.jsonl.xz").write_bytes(content)
        sizes[f"{name}_documents"] = len(documents)
        sizes[f"{name}_characters"] = sum(len(document.text) for document in documents)
        sizes[f"{name}_bytes"] = len(content)
    (folder / "LICENSE.md").write_text(LICENSE_NOTE, encoding="utf-8")
    write_documents(choices.out / "corpus.jsonl", selection.corpus)
    return {**sizes, "corpus_documents": len(selection.corpus), "near_duplicates": selection.near_duplicates}


def tokenizer(choices: argparse.Namespace) -> dict[str, Any]:
    """Write the tokenizer into model/."""
    texts = read_shipped(choices.out / "selection" / "pocket_train.jsonl.xz")
    made = train_tokenizer(texts, choices.vocabulary)
    made.model_max_length = choices.window
    made.save_pretrained(choices.out / "model")
    return {"entries": len(made), "characters_per_token": round(len(texts[0]) / len(made(texts[0])["input_ids"]), 3)}


def train(choices: argparse.Namespace) -> dict[str, Any]:
    """Write the model into model/."""
    made = AutoTokenizer.from_pretrained(choices.out / "model")
    tokens, held_out = corpus_tokens(choices, made), held_out_rows(choices, made)
    logger.info("train: %s tokens, %s held-out rows", f"{len(tokens):,}", f"{len(held_out):,}")
    shape = TeacherShape(len(made), choices.window, choices.width, choices.layers)
    model = make_teacher(shape, made.eos_token_id, choices.seed).to(choices.device)
    minutes = choices.minutes_train
    if choices.minutes_total is not None:
        spent = (time.monotonic() - choices.started) / 60
        minutes = max(LEAST_TRAINING_MINUTES, min(minutes, choices.minutes_total - spent - JUDGE_MINUTES))
    plan = TrainingPlan(
        minutes=minutes, epochs=choices.epochs, rows=choices.batch, learning_rate=choices.learning_rate,
        weight_decay=choices.weight_decay, dropout=choices.dropout,
        evaluation_steps=choices.evaluation_steps, seed=choices.seed, compiled=choices.compile,
    )  # fmt: skip
    figures = train_teacher(model, tokens, held_out, plan, choices.out / "model")
    device = torch.cuda.get_device_name() if choices.device.startswith("cuda") else "cpu"
    return {**figures, "device": device, "shape": shape.__dict__}


def judge(choices: argparse.Namespace) -> dict[str, Any]:
    """Measure the teacher and write its card."""
    folder = choices.out / "model"
    made = AutoTokenizer.from_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).to(choices.device).eval()
    counted = corpus_tokens(choices, made)[: choices.trigram_tokens]
    with tempfile.TemporaryDirectory() as workplace:
        text = Path(workplace) / "held_out.jsonl"
        text.write_bytes(lzma.decompress((choices.out / "selection" / "pocket_held_out.jsonl.xz").read_bytes()))
        evaluated = evaluated_perplexities(folder, text, (choices.window // 2, choices.window))
    judgment = judge_teacher(model, made, evaluated, counted, held_out_rows(choices, made), choices.seed)
    if not judgment.passes:
        logger.warning("judge: the teacher does NOT meet its conditions; see %s", folder / "README.md")
    done = {
        name: json.loads((choices.out / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("sample", "clean", "select", "tokenizer", "train")
    }
    card = model_card(done, judgment, done["train"]["shape"], choices.seed)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return judgment.__dict__


def corpus_tokens(choices: argparse.Namespace, made: PreTrainedTokenizerBase) -> Integer[np.ndarray, " tokens"]:
    """The corpus as tokens, the end-of-text token between documents."""
    texts = [document.text for document in read_documents(choices.out / "corpus.jsonl")]
    return tokenize_documents(texts, made, PackedRows())


def held_out_rows(choices: argparse.Namespace, made: PreTrainedTokenizerBase) -> Int[Tensor, "rows window"]:
    """The held-out documents as windows of tokens."""
    texts = read_shipped(choices.out / "selection" / "pocket_held_out.jsonl.xz")
    rows = TokenRows(tokenize_documents(texts, made, PackedRows()), window=choices.window, stride=choices.window)
    return torch.from_numpy(rows.take(np.arange(len(rows))))


def pack(folder: Path, archive: Path) -> None:
    """Write what ships, and the summaries, into one tar file."""
    files = [path for name in ("model", "selection") for path in sorted((folder / name).iterdir())]
    with tarfile.open(archive, "w") as tar:
        for path in [*files, *sorted(folder.glob("*.json"))]:
            tar.add(path, arcname=str(path.relative_to(folder)))
    logger.info("packed %s: %s bytes", archive, f"{archive.stat().st_size:,}")


if __name__ == "__main__":
    main()
