"""Samples the corpus: prompts in, cleaned documents out, batch after batch until there are tokens enough."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from asnn_goose.errors import DataError
from asnn_goose.inference.sampling import ContinuationSampler, Nucleus
from asnn_goose.models.loading import LoadedModel
from pocket.cleaning import Cleaned, DuplicateFilter, clean_text
from pocket.prompts import Prompt, chat_text, compose_prompts
from pocket.selection import Document, write_documents

logger = logging.getLogger(__name__)

PARALLEL_TEXTS = 4096
"""From so many texts on, processes share the cleaning."""

_Drawn = tuple[Int[Tensor, " rows"], Int[Tensor, "rows new"]]
"""A batch: the places of its prompts, and the tokens that continue them."""


@dataclass(frozen=True)
class SamplingPlan:
    """How much is sampled.

    Attributes:
        prompts: Different prompts.
        rows: Texts a batch.
        prompt_tokens: Longest prompt in tokens; longer ones are left out.
        new_tokens: Longest text in tokens.
        target_tokens: Sampling ends when so many tokens have been generated.
        minutes: Sampling ends after so long at the latest.
        nucleus: How tokens are drawn.
        seed: Seed of prompts and texts.
    """

    prompts: int
    rows: int
    prompt_tokens: int
    new_tokens: int
    target_tokens: int
    minutes: float
    nucleus: Nucleus
    seed: int


def sample_corpus(loaded: LoadedModel, plan: SamplingPlan, path: Path) -> dict[str, Any]:
    """Write documents.jsonl and return what was generated and kept, with the time it took.

    Raises:
        DataError: No prompt is short enough, or no text became a document.
    """
    prompts, ids, mask = _encode(compose_prompts(plan.prompts, plan.seed), loaded, plan.prompt_tokens)
    if not prompts:
        raise DataError(f"no prompt has {plan.prompt_tokens} tokens or fewer; allow longer prompts")
    drawn, figures = _sample_batches(loaded, plan, ids, mask)
    logger.info("sampled %s tokens; cleaning", f"{figures['generated_tokens']:,}")
    started = time.monotonic()
    chosen, texts, ended = _decode(drawn, loaded.tokenizer)
    asked = [prompts[place] for place in chosen]
    cleaned = _clean([prompt.opening + text for prompt, text in zip(asked, texts, strict=True)], ended)
    documents, outcomes = _new_documents(asked, cleaned)
    logger.info("cleaned %s texts in %.1f s", f"{len(texts):,}", time.monotonic() - started)
    if not documents:
        raise DataError(f"none of {len(texts)} texts became a document: {dict(outcomes)}")
    write_documents(path, documents)
    return {
        "model": loaded.name, "device": _device_name(loaded.model.device), "prompts": len(prompts), **figures,
        "documents": len(documents), "characters": sum(len(document.text) for document in documents),
        "outcomes": dict(outcomes.most_common()), "seed": plan.seed, "nucleus": plan.nucleus.__dict__,
        "most_new_tokens": plan.new_tokens,
    }  # fmt: skip


def _sample_batches(
    loaded: LoadedModel, plan: SamplingPlan, ids: Int[Tensor, "prompts width"], mask: Bool[Tensor, "prompts width"]
) -> tuple[list[_Drawn], dict[str, Any]]:
    eos_token_id, device = int(loaded.tokenizer.eos_token_id), loaded.model.device
    sampler = ContinuationSampler(
        loaded.model, plan.rows, plan.prompt_tokens + plan.new_tokens, plan.nucleus, eos_token_id
    )
    kept: list[_Drawn] = []
    generated, started = 0, time.monotonic()
    for batch, chosen in enumerate(_batches(len(ids), plan.rows, plan.seed)):
        generator = torch.Generator(device).manual_seed(plan.seed * 1_000_003 + batch)
        drawn = sampler.sample(ids[chosen], mask[chosen], plan.new_tokens, generator).cpu()
        kept.append((chosen, drawn))
        # An end-of-text token is generated, too; the ones behind it are filling.
        generated += int(((drawn != eos_token_id).sum(dim=1) + 1).clamp(max=plan.new_tokens).sum())
        seconds = time.monotonic() - started
        speed = f"{generated / seconds:,.0f}"
        logger.info("batch %d: %s tokens in %.1f s, %s tokens/s", batch, f"{generated:,}", seconds, speed)
        if generated >= plan.target_tokens or seconds >= 60 * plan.minutes:
            break
    return kept, {
        "texts": plan.rows * len(kept), "generated_tokens": generated, "seconds": round(seconds, 1),
        "tokens_per_second": round(generated / seconds),
    }  # fmt: skip


def _decode(drawn: list[_Drawn], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[str], list[bool]]:
    """Of each text: the place of its prompt, the text without its end, and whether it has one."""
    places: list[int] = []
    texts: list[str] = []
    ended: list[bool] = []
    for chosen, tokens in drawn:
        lengths = (tokens != tokenizer.eos_token_id).sum(dim=1).tolist()
        ids = [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]
        places += chosen.tolist()
        texts += tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)
        ended += [length < tokens.shape[1] for length in lengths]
    return places, texts, ended


def _clean(texts: list[str], ended: list[bool]) -> list[Cleaned]:
    if len(texts) < PARALLEL_TEXTS:
        return list(map(clean_text, texts, ended))
    # Fresh processes, because one that is forked from this would share the state of its device and threads.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return list(pool.map(clean_text, texts, ended, chunksize=PARALLEL_TEXTS // 8))


def _new_documents(prompts: list[Prompt], cleaned: list[Cleaned]) -> tuple[list[Document], Counter[str]]:
    """The texts that are documents, each once, and how many texts met each fate."""
    duplicates, outcomes = DuplicateFilter(), Counter[str]()
    documents = []
    for prompt, text in zip(prompts, cleaned, strict=True):
        outcome = text.rejection
        if not outcome:
            outcome = "kept" if duplicates.admits(text.text) else "duplicate"
        outcomes[outcome] += 1
        if outcome == "kept":
            documents.append(Document(prompt.kind, prompt.opening, text.text))
    return documents, outcomes


def _encode(
    prompts: list[Prompt], loaded: LoadedModel, most_tokens: int
) -> tuple[list[Prompt], Int[Tensor, "prompts width"], Bool[Tensor, "prompts width"]]:
    """The prompts that are short enough, their tokens padded on the left, and where the tokens are."""
    encoded = loaded.tokenizer([chat_text(prompt) for prompt in prompts], add_special_tokens=False)["input_ids"]
    short = [place for place, tokens in enumerate(encoded) if len(tokens) <= most_tokens]
    ids = torch.zeros(len(short), most_tokens, dtype=torch.long)
    mask = torch.zeros(len(short), most_tokens, dtype=torch.bool)
    for row, place in enumerate(short):
        tokens = torch.tensor(encoded[place])
        ids[row, -len(tokens) :], mask[row, -len(tokens) :] = tokens, True
    if len(short) < len(prompts):
        logger.info("%d of %d prompts are longer than %d tokens", len(prompts) - len(short), len(prompts), most_tokens)
    device = loaded.model.device
    return [prompts[place] for place in short], ids.to(device), mask.to(device)


def _batches(prompts: int, rows: int, seed: int) -> Iterator[Int[Tensor, " rows"]]:
    """Places of prompts, each prompt once before any comes again, in a new order each time."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < rows:
            waiting = torch.cat((waiting, torch.randperm(prompts, generator=generator)))
        yield waiting[:rows]
        waiting = waiting[rows:]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)
