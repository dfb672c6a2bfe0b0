"""Reads a GGUF file once where transformers reads it three times: for configuration, weights and tokenizer.

Parsing the metadata of a 49,152-entry vocabulary takes seconds, and the map from GGUF to transformers names is
rebuilt for every module of the model. Within the block both are remembered.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import gguf


@contextmanager
def one_gguf_reading() -> Iterator[None]:
    """Within the block, the same GGUF file is parsed once and each name map is built once."""
    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(reader), cache(name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map
