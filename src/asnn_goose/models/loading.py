"""Loads any causal language model by the one name users give: hub id, directory, .gguf file, `pocket`, `smollm2`."""

import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from asnn_goose.data.hub import hub_answers
from asnn_goose.data.pocket import POCKET_TEACHER
from asnn_goose.data.tokens import tokenizer_hash
from asnn_goose.errors import HubUnreachableError, TeacherError
from asnn_goose.models.gguf_once import one_gguf_reading
from asnn_goose.models.smollm2 import check_sha256, fetch_smollm2

logger = logging.getLogger(__name__)

# What transformers, tokenizers, safetensors and gguf raise for files that are damaged, incomplete or not theirs, and
# for a package that a model or its tokenizer needs and this machine lacks.
LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, struct.error)

OFFLINE_WAYS = (
    "offline, give teacher.name=DIRECTORY (made by save_pretrained), teacher.name=FILE.gguf, teacher.name=pocket "
    "(in the package), or teacher.name=smollm2, which comes from the package registry"
)


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with its tokenizer.

    Attributes:
        model: The language model.
        tokenizer: Its tokenizer.
        name: The name it was asked for by.
        vocabulary_hash: SHA-256 of the tokenizer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    vocabulary_hash: str


def load_causal_lm(
    name: str,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    sha256: str | None = None,
) -> LoadedModel:
    """Load a causal language model and its tokenizer, in evaluation mode and without gradients.

    Args:
        name: Hub id, local directory, run folder, .gguf file, `pocket`, or `smollm2`.
        dtype: Number type of the weights.
        device: Where the weights go.
        sha256: Expected SHA-256 of a .gguf file.

    Raises:
        TeacherError: The name leads to nothing that can be loaded.
        HubUnreachableError: A hub id, and the hub does not answer within 5 s.
    """
    arguments = _source_arguments(name, sha256)
    with quiet_transformers(), _gguf_manners("gguf_file" in arguments):
        model = _load_model(name, arguments, dtype)
        tokenizer = _load(AutoTokenizer, name, arguments)
    _check_tokenizer(name, tokenizer, model)
    model.eval().requires_grad_(False).to(device)
    return LoadedModel(model, tokenizer, name, tokenizer_hash(tokenizer))


def _source_arguments(name: str, sha256: str | None) -> dict[str, Any]:
    if name == "smollm2":
        file = fetch_smollm2()
        return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    if name == "pocket":
        return {"pretrained_model_name_or_path": str(POCKET_TEACHER), "local_files_only": True}
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise TeacherError(f"no file {name}: a .gguf teacher must be an existing file")
        if sha256 is not None:
            check_sha256(path, sha256)
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_dir():
        folder = path / "model" if (path / "model" / "config.json").is_file() else path
        if not (folder / "config.json").is_file():
            raise TeacherError(
                f"{name} holds no config.json: give a run folder with a finished model/, "
                "or a directory made by save_pretrained"
            )
        return {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise TeacherError(f"no model at {name}: give a directory made by save_pretrained, a .gguf file, or a hub id")
    return _hub_arguments(name)


def _hub_arguments(name: str) -> dict[str, Any]:
    if hub_answers():
        return {"pretrained_model_name_or_path": name}
    local = {"pretrained_model_name_or_path": name, "local_files_only": True}
    try:
        with quiet_transformers():
            AutoConfig.from_pretrained(**local)
    except (OSError, ValueError):
        raise HubUnreachableError(
            f"no directory {name} here, and the model hub did not answer within 5 s; {OFFLINE_WAYS}"
        ) from None
    logger.info("the model hub does not answer; %s comes from the local cache", name)
    return local


def _load_model(name: str, arguments: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    # transformers would draw weights that are missing or of another shape at random, with a warning.
    options = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, found = _load(AutoModelForCausalLM, name, arguments, **options, **_dequantize(arguments))
    _check_head(name, model, found["missing_keys"])
    wrong = sorted(found["missing_keys"]) + sorted(key for key, *_ in found["mismatched_keys"])
    if wrong:
        raise TeacherError(
            f"cannot load {name}: {len(wrong)} of its weights are missing or do not have the shape its configuration "
            f"says, {wrong[0]} first; save or download it again"
        )
    unused = sorted(found["unexpected_keys"])
    if unused:
        logger.warning(
            "%s: %d of its weights have no place in a model of its configuration and are left out, %s first; "
            "correct config.json if they belong to it", name, len(unused), unused[0],
        )  # fmt: skip
    loaded: PreTrainedModel = model
    return loaded


def _check_head(name: str, model: Any, missing: set[str]) -> None:
    # transformers would keep a head that its configuration says is the embedding, and draw a missing one at random.
    kept_apart = model.get_expanded_tied_weights_keys(all_submodels=True).keys() - model.all_tied_weights_keys.keys()
    if kept_apart:
        raise TeacherError(
            f"cannot load {name}: its configuration says tie_word_embeddings=true, but its weights hold another "
            f"{min(kept_apart)} than the token embedding; set tie_word_embeddings to false in its config.json"
        )
    head = model.get_output_embeddings()
    of_head = {key for key, weight in model.named_parameters(remove_duplicate=False) if head and weight is head.weight}
    if missing and missing <= of_head:
        raise TeacherError(
            f"cannot load {name}: its configuration says tie_word_embeddings=false, but its weights hold no "
            f"{min(missing)}; set tie_word_embeddings to true in its config.json if the head is the token embedding, "
            "else save the model again with its head"
        )


def _check_tokenizer(name: str, tokenizer: Any, model: Any) -> None:
    if not tokenizer.vocab_size:
        raise TeacherError(f"cannot load {name}: it holds no tokenizer; save the model's own beside it")
    rows = int(model.get_input_embeddings().weight.shape[0])
    token, index = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if index >= rows:
        raise TeacherError(
            f"cannot load {name}: its tokenizer has {token!r} as token {index}, but the model's embedding ends at "
            f"{rows - 1}; give it the tokenizer it was trained with, without tokens added later"
        )


def _load(loader: Any, name: str, arguments: dict[str, Any], **options: Any) -> Any:
    try:
        return loader.from_pretrained(**arguments, **options)
    except LOAD_ERRORS as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TeacherError(f"cannot load {name}: {first_line}") from error


def _dequantize(arguments: dict[str, Any]) -> dict[str, Any]:
    # Before GgufConfig existed (transformers 5.17) the plain call dequantizes.
    if "gguf_file" not in arguments or not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


@contextmanager
def _gguf_manners(reads_gguf: bool) -> Iterator[None]:
    if not reads_gguf:
        yield
        return
    # The dequantizing bar goes to standard error whatever transformers is told about bars.
    with one_gguf_reading(), redirect_stderr(StringIO()):
        yield


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within the block, transformers prints no logs, bars or warnings of its own."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
