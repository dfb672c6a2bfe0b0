"""The pretrained transformer that is distilled: frozen, in inference mode, seen as hidden states and an output head."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from asnn_goose.errors import TeacherError, VocabularyMismatchError
from asnn_goose.kernels.head_chunks import LinearHead
from asnn_goose.models.causal import causal_by_itself
from asnn_goose.models.compiling import CompiledForm, with_compiled_blocks
from asnn_goose.models.loading import LoadedModel, load_causal_lm

# A head that does more than a matrix product (a soft cap, a logit scale) differs far beyond rounding.
HEAD_TOLERANCE = 0.02


@dataclass(frozen=True)
class Teacher:
    """A frozen teacher.

    Attributes:
        model: The language model in evaluation mode.
        body: What maps ids to the last hidden states: the model's own body, and a compiled form if there is one.
        head: Output head.
        tokenizer: Its tokenizer.
        name: The name it was asked for by.
        vocabulary_hash: SHA-256 of the tokenizer.
    """

    model: PreTrainedModel
    body: CompiledForm[nn.Module]
    head: LinearHead
    tokenizer: PreTrainedTokenizerBase
    name: str
    vocabulary_hash: str

    @property
    def vocabulary_size(self) -> int:
        """Rows of the output head, padding rows included."""
        return int(self.head.weight.shape[0])

    @property
    def parameters(self) -> int:
        """Number of distinct weights."""
        return int(self.model.num_parameters())

    def hidden_states(self, input_ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time width"]:
        """Final hidden states, after the final norm: what the head multiplies."""
        with torch.inference_mode():
            return self.body.run(lambda body: body_hidden_states(body, input_ids))

    def hidden_states_uncompiled(self, input_ids: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time width"]:
        """The same from the model as it is: for shapes that come once, which would each be compiled anew."""
        with torch.inference_mode():
            return body_hidden_states(self.model.base_model, input_ids)


def load_teacher(
    name: str,
    dtype: torch.dtype,
    device: str | torch.device,
    sha256: str | None = None,
    compiled: bool = False,
) -> Teacher:
    """Load a teacher by name; see `load_causal_lm` for what a name can be.

    Raises:
        TeacherError: Nothing loadable, or logits that are not one matrix product of the last hidden state.
    """
    loaded = load_causal_lm(name, dtype, device, sha256)
    return make_teacher(loaded, compiled)


def make_teacher(loaded: LoadedModel, compiled: bool = False) -> Teacher:
    """The teacher a loaded model makes, its head checked against its own logits."""
    head = output_head(loaded.model, loaded.name)
    plain: nn.Module = loaded.model.base_model
    body = with_compiled_blocks(plain, "teacher") if compiled else CompiledForm(plain, None, "teacher")
    return Teacher(loaded.model, body, head, loaded.tokenizer, loaded.name, loaded.vocabulary_hash)


def body_hidden_states(body: Any, input_ids: Tensor) -> Tensor:
    """Last hidden states of a transformers body for full rows, without building a cache."""
    with causal_by_itself(body, input_ids.shape[1]):
        hidden: Tensor = body(input_ids=input_ids, use_cache=False).last_hidden_state
    return hidden


@torch.inference_mode()
def output_head(model: PreTrainedModel, name: str) -> LinearHead:
    """The matrix (and bias) that turns a model's last hidden state into its logits.

    Raises:
        TeacherError: The model's logits are not that product, so a loss computed from it would be another.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise TeacherError(f"{name} ({type(model).__name__}) has no linear output head to distill from")
    head = LinearHead(layer.weight, layer.bias)
    probe = torch.arange(min(8, head.weight.shape[0]), device=layer.weight.device).unsqueeze(0)
    logits = model(input_ids=probe, use_cache=False).logits.float()
    product = nn.functional.linear(body_hidden_states(model.base_model, probe), *head).float()
    error = float((logits - product).abs().max() / logits.abs().max().clamp_min(1e-6))
    if not error <= HEAD_TOLERANCE:
        raise TeacherError(
            f"{name}: its logits differ by {error:.0%} from head times last hidden state (a soft cap, a scale, or "
            "an extra projection); such a teacher is not supported yet, take another"
        )
    return head


def check_same_vocabulary(teacher: LoadedModel | Teacher, student: LoadedModel | Teacher) -> None:
    """Refuse two models that do not share one vocabulary.

    Raises:
        VocabularyMismatchError: Tokenizers or head sizes differ.
    """
    sizes = [int(entry.model.config.vocab_size) for entry in (teacher, student)]
    if sizes[0] != sizes[1] or teacher.vocabulary_hash != student.vocabulary_hash:
        raise VocabularyMismatchError(
            f"{teacher.name} has {sizes[0]} entries (tokenizer {teacher.vocabulary_hash[:12]}), {student.name} has "
            f"{sizes[1]} (tokenizer {student.vocabulary_hash[:12]}): a student is compared with, and learns from, "
            "a teacher of its own vocabulary"
        )
