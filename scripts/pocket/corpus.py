"""Samples texts, batch after batch until there are tokens enough, and cleans them into documents."""

import json
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
from pocket.prompts import END_OF_TURN, Prompt, chat_text, compose_prompts
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


@dataclass(frozen=True)
class SampledText:
    """What the model wrote to a prompt.

    Attributes:
        kind: What sort of text was asked for.
        opening: The first words of the answer, which were given.
        text: What the model wrote behind them.
        ended: Whether the model ended it, so that it was not cut off at the longest length.
    """

    kind: str
    opening: str
    text: str
    ended: bool


def sample_texts(loaded: LoadedModel, plan: SamplingPlan, path: Path) -> dict[str, Any]:
    """Write the sampled texts as JSON lines and return what was generated, with the time it took.

    Raises:
        DataError: No prompt is short enough.
    """
    prompts, ids, mask = _encode(compose_prompts(plan.prompts, plan.seed), loaded, plan.prompt_tokens)
    if not prompts:
        raise DataError(f"no prompt has {plan.prompt_tokens} tokens or fewer; allow longer prompts")
    drawn, figures = _sample_batches(loaded, plan, ids, mask)
    logger.info("sampled %s tokens", f"{figures['generated_tokens']:,}")
    with path.open("w", encoding="ascii") as file:
        for place, text, ended in _decode(drawn, loaded.tokenizer):
            sampled = SampledText(prompts[place].kind, prompts[place].opening, text, ended)
            file.write(json.dumps(sampled.__dict__) + "\n")
    return {
        "model": loaded.name, "device": _device_name(loaded.model.device), "prompts": len(prompts), **figures,
        "seed": plan.seed, "nucleus": plan.nucleus.__dict__, "most_new_tokens": plan.new_tokens,
    }  # fmt: skip


def clean_corpus(texts: Path, documents: Path) -> dict[str, Any]:
    """Write the sampled texts that are documents, each once, and return how many texts met each fate.

    Raises:
        DataError: No text became a document.
    """
    with texts.open(encoding="ascii") as file:
        sampled = [SampledText(**json.loads(line)) for line in file]
    kept, outcomes = _new_documents(sampled, _clean(sampled))
    if not kept:
        raise DataError(f"none of {len(sampled)} texts became a document: {dict(outcomes)}")
    write_documents(documents, kept)
    return {
        "documents": len(kept), "characters": sum(len(document.text) for document in kept),
        "outcomes": dict(outcomes.most_common()),
    }  # fmt: skip


def _sample_batches(
    loaded: LoadedModel, plan: SamplingPlan, ids: Int[Tensor, "prompts width"], mask: Bool[Tensor, "prompts width"]
) -> tuple[list[_Drawn], dict[str, Any]]:
    end, device = end_of_turn(loaded.tokenizer), loaded.model.device
    sampler = ContinuationSampler(loaded.model, plan.rows, plan.prompt_tokens + plan.new_tokens, plan.nucleus, end)
    kept: list[_Drawn] = []
    generated, started = 0, time.monotonic()
    for batch, chosen in enumerate(_batches(len(ids), plan.rows, plan.seed)):
        generator = torch.Generator(device).manual_seed(plan.seed * 1_000_003 + batch)
        drawn = sampler.sample(ids[chosen], mask[chosen], plan.new_tokens, generator).cpu()
        kept.append((chosen, drawn))
        # The token that ends a turn is generated, too; the ones behind it are filling.
        generated += int(((drawn != end).sum(dim=1) + 1).clamp(max=plan.new_tokens).sum())
        seconds = time.monotonic() - started
        speed = f"{generated / seconds:,.0f}"
        logger.info("batch %d: %s tokens in %.1f s, %s tokens/s", batch, f"{generated:,}", seconds, speed)
        if generated >= plan.target_tokens or seconds >= 60 * plan.minutes:
            break
    return kept, {
        "texts": plan.rows * len(kept), "generated_tokens": generated, "seconds": round(seconds, 1),
        "tokens_per_second": round(generated / seconds),
    }  # fmt: skip


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token with which a chat model ends its answer, which need not be the one that ends a text.

    Raises:
        DataError: The tokenizer has none.
    """
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    if not isinstance(end, int) or end == tokenizer.unk_token_id:
        raise DataError(f"the tokenizer has no {END_OF_TURN}: give a chat model in SmolLM2's format")
    return end


def _decode(drawn: list[_Drawn], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[int, str, bool]]:
    """Of each text: the place of its prompt, the text without its end, and whether it has one."""
    end = end_of_turn(tokenizer)
    for chosen, tokens in drawn:
        lengths = (tokens != end).sum(dim=1).tolist()
        ids = [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]
        texts = tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)
        yield from zip(chosen.tolist(), texts, (length < tokens.shape[1] for length in lengths), strict=True)


def _clean(sampled: list[SampledText]) -> list[Cleaned]:
    if len(sampled) < PARALLEL_TEXTS:
        return list(map(_clean_one, sampled))
    # Fresh processes, because one that is forked from this would share the state of its device and threads.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return list(pool.map(_clean_one, sampled, chunksize=PARALLEL_TEXTS // 8))


def _clean_one(sampled: SampledText) -> Cleaned:
    return clean_text(sampled.opening + sampled.text, sampled.ended)


def _new_documents(sampled: list[SampledText], cleaned: list[Cleaned]) -> tuple[list[Document], Counter[str]]:
    """The texts that are documents, each once, and how many texts met each fate."""
    duplicates, outcomes = DuplicateFilter(), Counter[str]()
    documents = []
    for source, text in zip(sampled, cleaned, strict=True):
        outcome = text.rejection
        if not outcome:
            outcome = "kept" if duplicates.admits(text.text) else "duplicate"
        outcomes[outcome] += 1
        if outcome == "kept":
            documents.append(Document(source.kind, source.opening, text.text))
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
