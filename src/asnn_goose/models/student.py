"""The spiking recurrent student: a real transformers model, so save, load and generate are the library's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import PreTrainedModel

from asnn_goose.models.block import BlockRunner, GooseBlock, build_encoders, build_norm, run_block
from asnn_goose.models.cache import RecurrentCache
from asnn_goose.models.configuration import GooseConfig
from asnn_goose.models.goose_mixer import GooseMixer
from asnn_goose.models.mixers import FeedForward
from asnn_goose.models.rotary import Tables
from asnn_goose.models.spiking_linear import Before, LayerInput, Traces, layer_input, membranes_after, spiking_linear
from asnn_goose.models.wkv_mixer import WkvMixer
from asnn_goose.spikes.encoder import SpikeEncoder


@dataclass
class GooseOutput(ModelOutput):
    """What a forward pass returns.

    Attributes:
        loss: Next-token cross-entropy in nats, mean over scored tokens, if labels were given.
        logits: [batch time vocabulary]; None from the body without a head.
        last_hidden_state: After the final norm, [batch time width]; where the head's input is encoded, the real numbers
            that its spikes stand for, of which a head makes the same logits.
        past_key_values: The cache to continue from, if asked for.
        hidden_states: Embedding output, then every block's output, if asked for.
        spikes: For each block a mapping of site to integer spikes [batch time width] in any dtype, and behind them one
            for the head where its input is encoded, if asked for.
        events: In the same order and by site, the mean |spike| of encoders that count them, with a gradient; None
            where none does.
        sent: In the same order and by site, what spikes stand for, [batch time width] with a gradient, of encoders that
            show it; None where none does.
        head_input: From the body alone: what the head multiplies, and the factor behind.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    past_key_values: RecurrentCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    spikes: tuple[dict[str, Tensor], ...] | None = None
    events: tuple[dict[str, Tensor], ...] | None = None
    sent: tuple[dict[str, Tensor], ...] | None = None
    head_input: LayerInput | None = None


class GoosePreTrainedModel(PreTrainedModel):
    """What the body and the language model share: configuration, initialization, cache policy."""

    config_class = GooseConfig
    base_model_prefix = "model"
    input_modalities: ClassVar[tuple[str, ...]] = ("text",)
    supports_gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = ["GooseBlock"]
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, (WkvMixer, GooseMixer, FeedForward, SpikeEncoder, nn.LayerNorm, nn.RMSNorm)):
            module.reset_parameters()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # generate must not make a growing cache: forward makes a RecurrentCache itself.
        return False


class GooseModel(GoosePreTrainedModel):
    """The body: embeddings, blocks and the final norm, without the head."""

    def __init__(self, config: GooseConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.positions == "learned"
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        self.layers = nn.ModuleList(GooseBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = build_norm(config)
        self.encoders = nn.ModuleDict(build_encoders(config, {"head_in": config.hidden_size}))
        # What runs a block where gradients are taken: compiled, if a training run asks for it.
        self.block_runner: BlockRunner = run_block
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"] | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Float[Tensor, "batch time width"] | None = None,
        past_key_values: RecurrentCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_spikes: bool = False,
    ) -> GooseOutput:
        """Hidden states of the tokens after what the cache has seen.

        `attention_mask` marks valid tokens by 1, over the given columns or over past and given ones together;
        a padded column leaves state, token shift and position untouched.

        Raises:
            ValueError: Neither or both of ids and embeddings, or more tokens than learned positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("forward takes either input_ids or inputs_embeds, exactly one of them")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = past_key_values is not None
        cache = past_key_values
        if cache is None and use_cache:
            cache = RecurrentCache(len(self.layers))
        valid = valid_columns(attention_mask, x.shape[1])
        positions = None if self.config.positions == "none" else self._positions(x, valid, cache)
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions)
        tables = self._tables(positions, x)
        hidden_states, traces = [x], list[Traces]()
        run = self.block_runner if cache is None and torch.is_grad_enabled() else run_block
        for index, block in enumerate(self.layers):
            layer_cache = None if cache is None else cache.layers[index]
            x, block_traces = run(cast(GooseBlock, block), x, layer_cache, valid, tables, output_spikes)
            hidden_states.append(x)
            traces.append(block_traces)
        self._advance(cache, x, valid)
        head_input, head_traces = self._head_input(x, valid, cache)
        if head_traces:
            traces.append(head_traces)
        events, sent = events_by_site(traces), sent_by_site(traces)
        return GooseOutput(
            last_hidden_state=head_input.dense(),
            past_key_values=cache if use_cache else None,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            spikes=spikes_by_site(traces) if output_spikes else None,
            events=events if any(events) else None,
            sent=sent if any(sent) else None,
            head_input=head_input,
        )

    def mixers(self) -> tuple[WkvMixer | GooseMixer, ...]:
        """The mixers of all blocks, first to last."""
        return tuple(cast(GooseBlock, block).mixer for block in self.layers)

    def mixer_norms(self) -> tuple[nn.Module, ...]:
        """The norms before the mixers, first to last."""
        return tuple(cast(GooseBlock, block).mixer_norm for block in self.layers)

    def _positions(self, x: Tensor, valid: Tensor | None, cache: RecurrentCache | None) -> Tensor:
        """Each column's place among the valid tokens of its row, [batch time]."""
        batch, time = x.shape[:2]
        if valid is None:
            positions = torch.arange(time, device=x.device).expand(batch, time)
        else:
            positions = (valid.long().cumsum(dim=1) - 1).clamp_min(0)
        past = 0
        if cache is not None and cache.layers[0].tokens_seen is not None:
            past = cache.get_seq_length()
            positions = positions + cache.layers[0].tokens_seen.unsqueeze(1)
        if self.embed_positions is not None and past + time > self.config.max_position_embeddings:
            self._check_positions(positions)
        return positions

    def _tables(self, positions: Tensor | None, x: Tensor) -> Tables | None:
        """What the rotary positions of all layers have in common, where there are any."""
        rotary = next((mixer.rotary for mixer in self.mixers() if isinstance(mixer, GooseMixer)), None)
        return None if rotary is None or positions is None else rotary.tables(positions, x.dtype)

    def _head_input(self, x: Tensor, valid: Tensor | None, cache: RecurrentCache | None) -> tuple[LayerInput, Traces]:
        """What the head multiplies, and what its site leaves."""
        traces: Traces = {}
        last = None if cache is None else cache.layers[-1]
        before = Before({} if last is None else last.membranes, valid)
        given = layer_input(self.encoders, "head_in", self.norm(x), traces, before)
        if last is not None:
            last.remember(membranes_after(traces))
        return given, traces

    def _check_positions(self, positions: Tensor) -> None:
        # Padding does not use positions up, so only this rare path looks at the values, which waits for the device.
        longest, limit = int(positions.max()) + 1, self.config.max_position_embeddings
        if longest > limit:
            raise ValueError(
                f"the sequence reaches {longest} tokens, but this student has {limit} learned positions: "
                "shorten the input, or train with student.positions=none or a larger student.max_positions"
            )

    def _advance(self, cache: RecurrentCache | None, x: Tensor, valid: Tensor | None) -> None:
        if cache is None:
            return
        batch, time = x.shape[:2]
        tokens = torch.full((batch,), time, device=x.device) if valid is None else valid.sum(dim=1)
        for layer in cache.layers:
            layer.advance(time, tokens)


class GooseForCausalLM(GoosePreTrainedModel, GenerationMixin):
    """The student language model: the body and a head, tied to the token embedding unless told otherwise."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: GooseConfig) -> None:
        super().__init__(config)
        self.model = GooseModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"] | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Float[Tensor, "batch time width"] | None = None,
        past_key_values: RecurrentCache | None = None,
        labels: Int[Tensor, "batch time"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_spikes: bool = False,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> GooseOutput | tuple[Any, ...]:
        """Logits of the next token at each position; see `GooseModel.forward`.

        Args:
            input_ids: Token ids.
            attention_mask: 1 at valid tokens.
            inputs_embeds: Embeddings in place of ids.
            past_key_values: The cache to continue from; it is updated in place.
            labels: Targets, usually `input_ids` themselves: the shift happens inside; -100 is not scored.
            use_cache: Return a cache.
            output_hidden_states: Return the embedding output and every block's output.
            output_spikes: Return the spikes of every block by site.
            logits_to_keep: Compute logits of only the last so many positions; 0 keeps all.
            return_dict: False returns a tuple, as transformers has it.
            kwargs: Arguments of other models that `generate` and `Trainer` pass on, such as `position_ids`
                (positions follow from `attention_mask` here) and `num_items_in_batch`.
        """
        body = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_spikes=output_spikes,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        values, scale = body.head_input
        # The factor of a token, or one for all.
        scale = scale[:, kept] if scale is not None and scale.ndim else scale
        logits = spiking_linear(self.lm_head, LayerInput(values[:, kept], scale))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size,
                num_items_in_batch=kwargs.get("num_items_in_batch"),
            )  # fmt: skip
        output = GooseOutput(
            loss=loss,
            logits=logits,
            last_hidden_state=body.last_hidden_state,
            past_key_values=body.past_key_values,
            hidden_states=body.hidden_states,
            spikes=body.spikes,
            events=body.events,
        )
        return output if return_dict in (None, True) else output.to_tuple()


def events_by_site(traces: Sequence[Traces]) -> tuple[dict[str, Tensor], ...]:
    """What encoders that count their spikes have counted in every block, by site."""
    return tuple({site: trace.events for site, trace in part.items() if trace.events is not None} for part in traces)


def sent_by_site(traces: Sequence[Traces]) -> tuple[dict[str, Tensor], ...]:
    """What the spikes of encoders that show them stand for in every block, by site."""
    return tuple({site: trace.sent for site, trace in part.items() if trace.sent is not None} for part in traces)


def spikes_by_site(traces: Sequence[Traces]) -> tuple[dict[str, Tensor], ...]:
    """The integer spikes of every block by site."""
    return tuple({site: trace.values for site, trace in part.items() if trace.values is not None} for part in traces)


def valid_columns(attention_mask: Tensor | None, columns: int) -> Tensor | None:
    """The given columns of an attention mask as booleans, or None where there is no mask."""
    if attention_mask is None:
        return None
    return attention_mask[:, -columns:].bool()
