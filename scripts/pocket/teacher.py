"""The pocket teacher: a small GPT-2 and its tokenizer, trained from nothing on the sampled corpus."""

import copy
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

END_OF_TEXT = "<|endoftext|>"
LOWEST_RATE_FRACTION = 0.05
LARGEST_GRADIENT_NORM = 1.0
LOGGING_STEPS = 100
EVALUATION_ROWS = 64


@dataclass(frozen=True)
class TeacherShape:
    """The size of the model.

    Attributes:
        vocabulary: Entries of the tokenizer.
        window: Most positions.
        width: Width of the hidden states.
        layers: Transformer blocks.
        heads: Attention heads.
    """

    vocabulary: int = 4096
    window: int = 512
    width: int = 256
    layers: int = 4
    heads: int = 4


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how the model is trained.

    Attributes:
        minutes: Longest time; the learning rate falls with it.
        epochs: Most passes over the corpus.
        rows: Windows a batch.
        learning_rate: Peak of the learning rate.
        weight_decay: Decay of matrices.
        dropout: Part of the values that each dropout layer drops.
        warmup_steps: Steps in which it rises.
        evaluation_steps: Steps between evaluations.
        seed: Seed of the weights and of the order.
        compiled: Whether torch.compile is tried.
    """

    minutes: float = 4.0
    epochs: float = 30.0
    rows: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    dropout: float = 0.05
    warmup_steps: int = 200
    evaluation_steps: int = 500
    seed: int = 0
    compiled: bool = False


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with at most `vocabulary` entries: the same for the same texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def make_teacher(shape: TeacherShape, end_of_text: int, seed: int) -> GPT2LMHeadModel:
    """An untrained model."""
    config = GPT2Config(
        vocab_size=shape.vocabulary, n_positions=shape.window,
        n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=end_of_text, eos_token_id=end_of_text,
        # The function of GPT-2's own "gelu_new", which transformers computes in eight steps.
        activation_function="gelu_pytorch_tanh",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    model.generation_config = GenerationConfig(
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        pad_token_id=end_of_text,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
    )
    return model


def train_teacher(
    model: GPT2LMHeadModel,
    tokens: Integer[np.ndarray, " tokens"],
    held_out: Int[Tensor, "rows window"],
    plan: TrainingPlan,
    folder: Path,
) -> dict[str, object]:
    """Train until the time or the epochs are over; the weights best on held-out text lie in `folder`, in float16.

    Returns the figures of the training: steps, tokens, epochs, seconds, and the evaluations.
    """
    device = model.device
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = plan.dropout
    optimizer = _optimizer(model, plan)
    forward = _compiled(model) if plan.compiled else model
    most_steps = max(1, math.ceil(plan.epochs * len(tokens) / (plan.rows * model.config.n_positions)))
    evaluations: list[dict[str, float]] = []
    started, step, progress = time.monotonic(), 0, 0.0
    for batch in _batches(tokens, model.config.n_positions, plan, device):
        rate = plan.learning_rate * min(1.0, (step + 1) / plan.warmup_steps) * _cosine(progress)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = forward(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % LOGGING_STEPS == 0:
            logger.info(
                "step %d: loss %.4f nats, rate %.2e, %.0f s", step, loss.item(), rate, time.monotonic() - started
            )
        progress = max((time.monotonic() - started) / (60 * plan.minutes), step / most_steps)
        if step % plan.evaluation_steps == 0 or progress >= 1:
            _evaluate(model, held_out, step, evaluations, folder)
        if progress >= 1:
            break
    model.eval()
    seconds, seen = time.monotonic() - started, step * plan.rows * model.config.n_positions
    return {
        "parameters": model.num_parameters(), "steps": step, "seconds": round(seconds, 1), "corpus_tokens": len(tokens),
        "trained_tokens": seen, "epochs": round(seen / len(tokens), 2), "tokens_per_second": round(seen / seconds),
        "best": min(evaluations, key=lambda evaluation: evaluation["loss_nats"]), "evaluations": evaluations,
        "plan": plan.__dict__,
    }  # fmt: skip


def _evaluate(
    model: GPT2LMHeadModel, held_out: Tensor, step: int, evaluations: list[dict[str, float]], folder: Path
) -> None:
    model.eval()
    losses = losses_nats(model, held_out)
    model.train()
    loss, (early, late) = float(losses.mean()), position_losses(losses)
    logger.info(
        "step %d: held-out loss %.4f nats, perplexity %.3f, first positions %.3f, late positions %.3f",
        step, loss, math.exp(loss), early, late,
    )  # fmt: skip
    if all(loss < evaluation["loss_nats"] for evaluation in evaluations):
        # A copy, because half() changes the model in place.
        copy.deepcopy(model).half().save_pretrained(folder)
    evaluations.append({"step": step, "loss_nats": round(loss, 5)})


@torch.no_grad()
def losses_nats(model: GPT2LMHeadModel, rows: Int[Tensor, "rows window"]) -> Float[Tensor, "rows predicted"]:
    """Loss of each token of the rows but the first, given those before it in its row."""
    device, losses = model.device, []
    for part in rows.split(EVALUATION_ROWS):
        ids = part.to(device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses.append(
            torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none").cpu()
        )
    return torch.cat(losses)


def position_losses(losses: Float[Tensor, "rows predicted"]) -> tuple[float, float]:
    """Mean loss at positions 1 to 8, and from a quarter of the window on (128 of 512)."""
    return float(losses[:, :8].mean()), float(losses[:, (losses.shape[1] + 1) // 4 - 1 :].mean())


def _optimizer(model: GPT2LMHeadModel, plan: TrainingPlan) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.dim() >= 2], "weight_decay": plan.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95), fused=True)


def _compiled(model: GPT2LMHeadModel) -> torch.nn.Module:
    # What cannot be compiled runs as it is.
    torch._dynamo.config.suppress_errors = True
    compiled: torch.nn.Module = torch.compile(model, dynamic=False)
    return compiled


def _cosine(progress: float) -> float:
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return LOWEST_RATE_FRACTION + (1 - LOWEST_RATE_FRACTION) * falling


def _batches(
    tokens: Integer[np.ndarray, " tokens"], window: int, plan: TrainingPlan, device: torch.device
) -> Iterator[Int[Tensor, "rows window"]]:
    """Windows in random order without end; each epoch cuts the text at other places."""
    generator = torch.Generator().manual_seed(plan.seed)
    text = torch.from_numpy(np.asarray(tokens, dtype=np.int32)).to(device)
    while True:
        shift = int(torch.randint(window, (), generator=generator))
        count = (len(text) - shift) // window
        rows = text[shift : shift + count * window].view(count, window)
        order = torch.randperm(count, generator=generator).to(device)
        for places in order.split(plan.rows):
            yield rows[places].long()
