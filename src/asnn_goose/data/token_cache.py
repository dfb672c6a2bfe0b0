"""How a row of token ids lies in the cache: one .npy file beside a description that tells a damaged one."""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Integer

logger = logging.getLogger(__name__)


def token_dtype(largest: int) -> np.dtype[Any]:
    """The number type of cached tokens whose ids go up to `largest`: uint16 if they fit, else uint32."""
    return np.dtype(np.uint16 if largest < 2**16 else np.uint32)


def read_cached_tokens(directory: Path) -> Integer[np.ndarray, " tokens"] | None:
    """The cached tokens, memory-mapped, or None if there are none or they are not what their description says."""
    try:
        described = json.loads((directory / "tokens.json").read_text(encoding="utf-8"))
        tokens: Integer[np.ndarray, " tokens"] = np.load(directory / "tokens.npy", mmap_mode="r")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("the cached tokens in %s are damaged (%s) and are made again", directory, error)
        return None
    if described != {"tokens": tokens.size, "dtype": str(tokens.dtype)}:
        logger.warning("the cached tokens in %s are not those once written and are made again", directory)
        return None
    return tokens


def write_tokens(
    directory: Path, pieces: Iterable[Sequence[int] | Integer[np.ndarray, " piece"]], dtype: np.dtype[Any]
) -> int:
    """Write pieces one after the other, as `read_cached_tokens` reads them; returns how many tokens that makes."""
    count = 0
    with (directory / "tokens.npy").open("wb") as file:
        _write_header(file, dtype, count)
        for piece in pieces:
            file.write(np.asarray(piece, dtype=dtype).tobytes())
            count += len(piece)
        # numpy leaves room in the header for the count to grow, so it can be written when it is known.
        file.seek(0)
        _write_header(file, dtype, count)
    described = json.dumps({"tokens": count, "dtype": str(dtype)})
    (directory / "tokens.json").write_text(described, encoding="utf-8")
    return count


def _write_header(file: IO[bytes], dtype: np.dtype[Any], count: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)
