"""Attention over full rows without a mask: causal by the kernel's own flag, decided without asking the GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "asnn_goose_full_rows"


@contextmanager
def causal_by_itself(body: PreTrainedModel, time: int) -> Iterator[None]:
    """Within it, a transformers body that uses torch's attention builds no mask for its rows of `time` tokens.

    Left to itself it looks for several texts packed into a row, which makes the host wait for the GPU in every pass;
    while a CUDA graph is recorded it cannot look, and attends with a mask of [batch 1 time time], 3 times slower.
    Rows here are never packed or padded. A model whose attention reaches back less than `time` stays as it is.
    """
    config = body.config
    before = getattr(config, "_attn_implementation", None)
    reaches = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    # A model that does not take its attention from transformers' table may ask for names of its own.
    known = before == "sdpa" and body._supports_attention_backend
    if not known or any(reach is not None and reach < time for reach in reaches):
        yield
        return
    # A name for which transformers knows no mask: then it makes none.
    AttentionInterface.register(NAME, sdpa_attention_forward)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
