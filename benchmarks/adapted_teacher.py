"""The control beside a converted student: its teacher, trained by cross-entropy on the very rows of the recipe.

A student that learns from text also learns that text. What the teacher itself gains from the same rows, in the same
order, windows and batches, says how much of a ratio is the text and not the teacher. Alignment stages, which read no
next token, are passed over. Prints the perplexity on the recipe's held-out text before and after; `--save` keeps the
model for `asnn-goose evaluate`.

    python benchmarks/adapted_teacher.py convert-smollm2 --learning-rate 3e-4 --save ADAPTED [KEY=VALUE ...]
"""

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch.nn import functional

from asnn_goose.data.batches import BatchPlan
from asnn_goose.evaluation.perplexity import EvaluationWindows, evaluation_windows, measure_perplexity
from asnn_goose.models.compiling import compile_or_fall_back
from asnn_goose.models.teacher import Teacher, body_hidden_states, load_teacher, output_head
from asnn_goose.presets import load_recipe
from asnn_goose.training.optimizer import build_optimizer, learning_rate_share, set_learning_rate
from asnn_goose.training.precision import resolve_precision, resolve_teacher_dtype
from asnn_goose.training.rows import prepare_text
from asnn_goose.training.stages import plan_stages

LOGGED_STEPS = 100


def parse_arguments() -> argparse.Namespace:
    """The recipe and the rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="whose text, windows, batches and budget are used")
    parser.add_argument("overrides", nargs="*", help="recipe keys, as for distill")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="peak rate of all weights")
    parser.add_argument("--save", type=Path, help="folder for the trained model")
    return parser.parse_args()


def perplexity(teacher: Teacher, windows: EvaluationWindows) -> float:
    """The model's perplexity on the windows."""
    body = partial(body_hidden_states, teacher.model.base_model)
    with torch.inference_mode():
        return measure_perplexity(body, output_head(teacher.model, teacher.name), windows).perplexity


def main() -> None:
    """Train through the recipe's distillation stages, and evaluate."""
    options, console = parse_arguments(), Console()
    recipe = load_recipe(options.recipe, options.overrides)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(recipe.training.seed)
    # In the number type of the recipe's own runs, so that text the teacher has written for them is found again.
    dtype = resolve_teacher_dtype(
        recipe.teacher.dtype, resolve_precision(recipe.training.precision, torch.device(device))
    )
    teacher = load_teacher(recipe.teacher.name, dtype, device, recipe.teacher.sha256)
    text = prepare_text(recipe.data, recipe.training.seed, teacher, console)
    teacher.model.float()
    windows = evaluation_windows(text.separator.join(text.held_out), teacher.tokenizer, recipe.evaluation)
    console.print(f"{recipe.teacher.name} before: perplexity {perplexity(teacher, windows):.3f} ({windows.statement})")
    model = teacher.model.train().requires_grad_(True)
    body = (
        compile_or_fall_back(model.base_model, "teacher", dynamic=False) if recipe.teacher.compile else model.base_model
    )
    plans = [plan for plan in plan_stages(recipe, 1) if plan.kind == "distill"]
    whole, done, tokens = sum(plan.steps for plan in plans), 0, 0
    started = time.perf_counter()
    optimizer = build_optimizer(model, recipe.training, replace(plans[0], learning_rate=options.learning_rate))
    for plan in plans:
        batches = BatchPlan(text.rows(plan.window), plan.batch_size, recipe.training.seed + plan.index)
        for step in range(plan.steps):
            set_learning_rate(optimizer, learning_rate_share(done, whole, recipe.training))
            ids = batches.batch(step * plan.batch_size).to(device)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                logits = model.get_output_embeddings()(body_hidden_states(body, ids)[:, :-1])
            loss = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.training.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done, tokens = done + 1, tokens + ids.numel()
            if done % LOGGED_STEPS == 0 or done == whole:
                rate = tokens / (time.perf_counter() - started)
                console.print(
                    f"step {done}/{whole} · loss {float(loss.detach()):.3f} nats · {rate:,.0f} tok/s", highlight=False
                )
    model.eval()
    console.print(f"{recipe.teacher.name} after {tokens:,} tokens: perplexity {perplexity(teacher, windows):.3f}")
    if options.save is not None:
        model.save_pretrained(options.save)
        teacher.tokenizer.save_pretrained(options.save)


if __name__ == "__main__":
    main()
