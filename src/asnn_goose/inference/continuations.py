"""Continues batches of prompts of one length with any model, in the faster of the two ways that there are for it.

Llama-family models are sampled by `ContinuationSampler`, others by transformers' `generate`. Both draw from the same
distribution, which `Nucleus` describes, and not in the same order, so that one seed gives different texts.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from asnn_goose.errors import ModelError
from asnn_goose.inference.cached_llama import check_supported
from asnn_goose.inference.sampling import ContinuationSampler, Nucleus

WriteBatch = Callable[[Int[Tensor, "rows prompt"], int], Int[Tensor, "rows continuation"]]
"""Continues a batch of prompts with a seed; behind its first end-of-text token a row holds filling."""


def has_sampler(model: PreTrainedModel) -> bool:
    """Whether `ContinuationSampler` can be used with a model."""
    try:
        check_supported(model)
    except ModelError:
        return False
    return True


def batch_writer(model: PreTrainedModel, rows: int, length: int, nucleus: Nucleus, end: int) -> WriteBatch:
    """What continues batches of at most `rows` prompts until they are `length` tokens long or come to their `end`.

    Raises:
        ModelError: The model has fewer positions.
    """
    if not has_sampler(model):
        return lambda prompts, seed: _generate(model, prompts, length - prompts.shape[1], nucleus, end, seed)
    sampler = ContinuationSampler(model, rows, length, nucleus, end)

    def write(prompts: Int[Tensor, "rows prompt"], seed: int) -> Int[Tensor, "rows continuation"]:
        """The sampler's continuations."""
        generator = torch.Generator(model.device).manual_seed(seed)
        return sampler.sample(prompts, torch.ones_like(prompts), length - prompts.shape[1], generator)

    return write


def join_texts(
    prompts: Int64[np.ndarray, "rows prompt"], continuations: Int64[np.ndarray, "rows continuation"], end: int
) -> Int64[np.ndarray, " tokens"]:
    """The prompts with their continuations one behind the other, without what lies behind an end-of-text token."""
    is_end = continuations == end
    kept = np.cumsum(is_end, axis=1) - is_end == 0
    kept = np.concatenate((np.ones_like(prompts, dtype=np.bool_), kept), axis=1)
    joined: Int64[np.ndarray, " tokens"] = np.concatenate((prompts, continuations), axis=1)[kept]
    return joined


def _generate(
    model: PreTrainedModel, prompts: Int[Tensor, "rows prompt"], new_tokens: int, nucleus: Nucleus, end: int, seed: int
) -> Int[Tensor, "rows continuation"]:
    # A model's own configuration may punish repetitions and the like, which would not be its distribution.
    own, model.generation_config = model.generation_config, GenerationConfig()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(seed)
            produced: Tensor = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=True,
                max_new_tokens=new_tokens,
                eos_token_id=end,
                pad_token_id=end,
                temperature=nucleus.temperature,
                top_p=nucleus.top_p,
                top_k=nucleus.candidates,
            )
    finally:
        model.generation_config = own
    return produced[:, prompts.shape[1] :]
