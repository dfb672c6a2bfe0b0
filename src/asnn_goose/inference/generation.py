"""Continues prompts with any model the package can load, or with two of them side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from asnn_goose.errors import ModelError
from asnn_goose.models.loading import load_causal_lm


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: Tokens to add.
        temperature: Divides the logits before sampling.
        top_p: Share of probability the sampled nucleus holds, in (0, 1].
        greedy: Take the likeliest token; temperature and top_p then have no part.
        seed: Seed of the sampling.
    """

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_p: float = 0.95
    greedy: bool = False
    seed: int = 0


@dataclass(frozen=True)
class SideBySide:
    """One beginning and how two models go on.

    Attributes:
        prompt: The beginning.
        teacher: The teacher's continuation, without the beginning.
        student: The student's.
    """

    prompt: str
    teacher: str
    student: str


def continue_prompt(name: str, prompt: str, options: SamplingOptions) -> str:
    """The prompt and its continuation.

    Raises:
        ModelError: An empty prompt for a model without a start token, or a text longer than its positions.
        GooseError: The model cannot be loaded; see `load_causal_lm`.
    """
    loaded = load_causal_lm(name)
    tokenizer = loaded.tokenizer
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"].long()
    if ids.shape[1] == 0:
        start = _first_given(tokenizer.bos_token_id, tokenizer.eos_token_id)
        if start is None:
            raise ModelError(f"--prompt is empty and {name} has no start token: give at least one word")
        ids = torch.tensor([[start]])
    produced = continue_tokens(loaded.model, tokenizer, ids, options, name)
    return str(tokenizer.decode(produced[0], skip_special_tokens=True))


def continue_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Int[Tensor, "1 prompt"],
    options: SamplingOptions,
    name: str,
) -> Int[Tensor, "1 tokens"]:
    """The prompt's tokens and those that continue them; the global generator is left as it was.

    Raises:
        ModelError: The text is longer than the model's positions.
    """
    # transformers samples from the 50 likeliest tokens alone unless top_k is 0.
    sampling = {} if options.greedy else {"temperature": options.temperature, "top_p": options.top_p, "top_k": 0}
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(options.seed)
        try:
            produced: Tensor = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=options.max_new_tokens,
                do_sample=not options.greedy,
                pad_token_id=_first_given(tokenizer.pad_token_id, tokenizer.eos_token_id),
                **sampling,
            )
        except ValueError as error:
            raise ModelError(str(error)) from error
        except IndexError as error:
            # What an embedding raises; the positions of a text are the only index that grows.
            raise ModelError(
                f"the prompt's {ids.shape[1]} tokens and {options.max_new_tokens} more reach past the positions that "
                f"{name} has: ask for fewer with --max-new-tokens, or shorten --prompt"
            ) from error
    return produced


def continue_side_by_side(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    beginnings: Sequence[Int[Tensor, " prompt"]],
    options: SamplingOptions,
) -> tuple[SideBySide, ...]:
    """Each beginning continued by both models with the same options and seed."""
    pairs = []
    for ids in beginnings:
        texts = []
        for model, name in ((teacher, "teacher"), (student, "student")):
            produced = continue_tokens(model, tokenizer, ids.unsqueeze(0).to(model.device), options, name)
            texts.append(str(tokenizer.decode(produced[0, len(ids) :], skip_special_tokens=True)))
        pairs.append(SideBySide(str(tokenizer.decode(ids, skip_special_tokens=True)), *texts))
    return tuple(pairs)


def _first_given(*token_ids: int | None) -> int | None:
    """The first id that is not None; 0 is an id."""
    return next((token_id for token_id in token_ids if token_id is not None), None)
