"""Samples the corpus: prompts in, cleaned documents out, batch after batch until there are tokens enough."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch
from asnn_goose.errors import DataError
from asnn_goose.inference.sampling import ContinuationSampler, Nucleus
from asnn_goose.models.loading import LoadedModel
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pocket.cleaning import DuplicateFilter, clean_text
from pocket.prompts import Prompt, chat_text, compose_prompts
from pocket.selection import Document, write_documents

logger = logging.getLogger(__name__)

NUCLEUS = Nucleus(temperature=0.8, top_p=0.95, candidates=512)


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
        seed: Seed of prompts and texts.
    """

    prompts: int
    rows: int
    prompt_tokens: int
    new_tokens: int
    target_tokens: int
    minutes: float
    seed: int


@dataclass
class Harvest:
    """Cleans sampled texts into documents and counts what became of them."""

    tokenizer: PreTrainedTokenizerBase
    eos_token_id: int
    documents: list[Document] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    duplicates: DuplicateFilter = field(default_factory=DuplicateFilter)

    def gather(self, prompts: list[Prompt], drawn: Int[Tensor, "rows new"]) -> None:
        """Keep the texts of a batch that are documents and that are new."""
        lengths = (drawn != self.eos_token_id).sum(dim=1).tolist()
        ids = [row[:length] for row, length in zip(drawn.tolist(), lengths, strict=True)]
        continuations = self.tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)
        for prompt, continuation, length in zip(prompts, continuations, lengths, strict=True):
            cleaned = clean_text(prompt.opening + continuation, ended=length < drawn.shape[1])
            outcome = cleaned.rejection
            if not outcome and not self.duplicates.admits(cleaned.text):
                outcome = "duplicate"
            self.outcomes[outcome or "kept"] += 1
            if not outcome:
                self.documents.append(Document(prompt.kind, prompt.opening, cleaned.text))


def sample_corpus(loaded: LoadedModel, plan: SamplingPlan, path: Path) -> dict[str, object]:
    """Write documents.jsonl and return what was generated and kept, with the time it took.

    Raises:
        DataError: No prompt is short enough, or no text became a document.
    """
    eos_token_id = int(loaded.tokenizer.eos_token_id)
    prompts, ids, mask = _encode(compose_prompts(plan.prompts, plan.seed), loaded, plan.prompt_tokens)
    if not prompts:
        raise DataError(f"no prompt has {plan.prompt_tokens} tokens or fewer; allow longer prompts")
    positions = plan.prompt_tokens + plan.new_tokens
    sampler = ContinuationSampler(loaded.model, plan.rows, positions, NUCLEUS, eos_token_id)
    harvest = Harvest(loaded.tokenizer, eos_token_id)
    generated, texts, started = 0, 0, time.monotonic()
    # Texts are cleaned while the device samples the next ones.
    with closing(_batches(len(prompts), plan.rows, plan.seed)) as batches, ThreadPoolExecutor(1) as worker:
        cleaning: Future[None] | None = None
        for batch, chosen in enumerate(batches):
            generator = torch.Generator(loaded.model.device).manual_seed(plan.seed * 1_000_003 + batch)
            drawn = sampler.sample(ids[chosen], mask[chosen], plan.new_tokens, generator).cpu()
            if cleaning is not None:
                cleaning.result()
            cleaning = worker.submit(harvest.gather, [prompts[place] for place in chosen.tolist()], drawn)
            texts += len(drawn)
            # An end-of-text token is generated, too; the ones behind it are filling.
            generated += int(((drawn != eos_token_id).sum(dim=1) + 1).clamp(max=plan.new_tokens).sum())
            seconds = time.monotonic() - started
            logger.info(
                "batch %d: %s tokens in %.1f s, %s tokens/s, %s documents",
                batch, f"{generated:,}", seconds, f"{generated / seconds:,.0f}", f"{len(harvest.documents):,}",
            )  # fmt: skip
            if generated >= plan.target_tokens or seconds >= 60 * plan.minutes:
                break
    seconds = time.monotonic() - started
    if not harvest.documents:
        raise DataError(f"none of {texts} texts became a document: {dict(harvest.outcomes)}")
    write_documents(path, harvest.documents)
    return {
        "model": loaded.name, "device": _device_name(loaded.model.device), "prompts": len(prompts), "texts": texts,
        "generated_tokens": generated, "seconds": round(seconds, 1), "tokens_per_second": round(generated / seconds),
        "documents": len(harvest.documents), "characters": sum(len(document.text) for document in harvest.documents),
        "outcomes": dict(harvest.outcomes.most_common()), "seed": plan.seed,
        "nucleus": NUCLEUS.__dict__, "most_new_tokens": plan.new_tokens,
    }  # fmt: skip


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
    for _ in count():
        while len(waiting) < rows:
            waiting = torch.cat((waiting, torch.randperm(prompts, generator=generator)))
        yield waiting[:rows]
        waiting = waiting[rows:]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)
