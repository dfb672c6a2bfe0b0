"""The student's layer as a fixed list of typed operations: one description that counters and exporters can read."""

from dataclasses import dataclass
from typing import Any, Literal, cast

from asnn_goose.models.configuration import GooseConfig

OperationKind = Literal["norm", "shift", "matmul", "encode", "scan", "elementwise"]


@dataclass(frozen=True)
class Operation:
    """One operation of the layer.

    Attributes:
        kind: What it does.
        module: Path of the module within the block that does it; empty for plain arithmetic.
        inputs: Names of the tensors it reads.
        output: Name of the tensor it makes.
        macs: Multiply-accumulates a token, for a matrix product; else 0.
    """

    kind: OperationKind
    module: str
    inputs: tuple[str, ...]
    output: str
    macs: int = 0


def layer_plan(config: GooseConfig) -> tuple[Operation, ...]:
    """The operations of one block, in order; all blocks are alike."""
    width, inner = config.hidden_size, cast(int, config.intermediate_size)
    mixer = _goose_mixer_plan(config) if config.mixer == "goose" else _wkv_mixer_plan(config)
    plan = [
        Operation("norm", "mixer_norm", ("x",), "normed"),
        *mixer,
        Operation("elementwise", "", ("x", "mixed"), "x_mixed"),
        Operation("norm", "feed_forward_norm", ("x_mixed",), "ffn_in_dense"),
        _encoding(config, "ffn_in", "feed_forward"),
        Operation("matmul", "feed_forward.up", ("ffn_in",), "ffn_up", width * inner),
    ]
    gated = ("ffn_gate",) if config.mlp == "swiglu" else ()
    if gated:
        plan.append(Operation("matmul", "feed_forward.gate", ("ffn_in",), "ffn_gate", width * inner))
    hidden = "ffn_hidden" if config.output_norm else "ffn_mid_dense"
    plan += [
        Operation("elementwise", "", ("ffn_up", *gated), hidden),
        *_output_norm(config, "feed_forward", hidden),
        _encoding(config, "ffn_mid", "feed_forward"),
        Operation("matmul", "feed_forward.down", ("ffn_mid",), "ffn_out", width * inner),
        Operation("elementwise", "", ("x_mixed", "ffn_out"), "x_next"),
    ]
    return tuple(plan)


def _wkv_mixer_plan(config: GooseConfig) -> list[Operation]:
    width = config.hidden_size
    plan = [Operation("shift", "", ("normed",), "previous")]
    for role, module in (("k", "key"), ("v", "value"), ("r", "receptance")):
        plan.append(Operation("elementwise", "", ("normed", "previous"), f"x_{role}"))
        plan.append(Operation("matmul", f"mixer.{module}", (f"x_{role}",), f"{role}_dense", width * width))
    return [
        *plan,
        _encoding(config, "k"),
        _encoding(config, "v"),
        Operation("scan", "mixer", ("k", "v"), "mixer_out_dense"),
        _encoding(config, "mixer_out"),
        Operation("matmul", "mixer.output", ("mixer_out",), "read", width * width),
        Operation("elementwise", "", ("r_dense", "read"), "mixed"),
    ]


def _goose_mixer_plan(config: GooseConfig) -> list[Operation]:
    width, head = config.hidden_size, cast(int, config.head_dim)
    reading, holding = (cast(int, heads) * head for heads in (config.num_attention_heads, config.num_key_value_heads))
    plan = [_encoding(config, "mixer_in", dense="normed")]
    for role, module, channels in (("r", "receptance", reading), ("k", "key", holding), ("v", "value", holding)):
        plan.append(Operation("matmul", f"mixer.{module}", ("mixer_in",), f"{role}_projected", width * channels))
    for role in ("r", "k", "v"):
        normed = config.key_norm and role != "v"
        convolved = f"{role}_convolved" if normed else f"{role}_dense"
        plan.append(Operation("shift", "mixer.taps", (f"{role}_projected",), convolved))
        if normed:
            name = {"r": "receptance", "k": "key"}[role]
            plan.append(Operation("norm", f"mixer.{name}_norm", (convolved,), f"{role}_dense"))
    rates = 3 * cast(int, config.num_key_value_heads)
    plan += [_encoding(config, "k"), _encoding(config, "v")]
    plan.append(Operation("matmul", "mixer.rates", ("mixer_in",), "rates", width * rates))
    gates: tuple[str, ...] = ()
    made = "gated" if config.output_norm else "mixer_out_dense"
    if config.gate_rank:
        gates = ("gate",)
        plan += [
            Operation("matmul", "mixer.gate_down", ("mixer_in",), "gate_mid_dense", width * config.gate_rank),
            _encoding(config, "gate_mid"),
            Operation("matmul", "mixer.gate_up", ("gate_mid",), "gate", config.gate_rank * reading),
        ]
    return [
        *plan,
        # Products of k and v within the state are no weights; each head writes, erases and is read once a token.
        Operation("scan", "mixer", ("r_dense", "k", "v", "rates"), "read"),
        Operation("elementwise", "mixer.head_norm", ("read", *gates), made),
        *_output_norm(config, "mixer", made),
        _encoding(config, "mixer_out"),
        Operation("matmul", "mixer.output", ("mixer_out",), "mixed", reading * width),
    ]


def _output_norm(config: GooseConfig, part: str, given: str) -> list[Operation]:
    made = {"mixer": "mixer_out_dense", "feed_forward": "ffn_mid_dense"}[part]
    return [Operation("norm", f"{part}.output_norm", (given,), made)] if config.output_norm else []


def _encoding(config: GooseConfig, site: str, part: str = "mixer", dense: str | None = None) -> Operation:
    """What makes the tensor of a site out of its dense form: an encoder, or nothing."""
    given = (dense or f"{site}_dense",)
    if site in _sites(config):
        return Operation("encode", f"{part}.encoders.{site}", given, site)
    return Operation("elementwise", "", given, site)


def _sites(config: GooseConfig) -> list[str]:
    sites: list[str] = cast(dict[str, Any], config.spikes)["sites"]
    return sites


def macs_per_token(config: GooseConfig) -> int:
    """Multiply-accumulates of all matrix products a token passes, head included, embedding lookups not."""
    block = sum(operation.macs for operation in layer_plan(config))
    return config.num_hidden_layers * block + config.hidden_size * config.vocab_size


def spike_fed_mac_share(config: GooseConfig, with_head: bool = True) -> float:
    """Share of those multiply-accumulates whose input is a spike tensor, from 0 to 1: what events could skip.

    An amplitude for each channel counts as folded into the weights. `with_head` also counts the head.
    """
    block, fed = layer_plan(config), spike_fed_matmuls(config)
    layers, head = config.num_hidden_layers, config.hidden_size * config.vocab_size if with_head else 0
    whole = layers * sum(operation.macs for operation in block) + head
    skipped = layers * sum(operation.macs for operation in fed) + (head if "head_in" in _sites(config) else 0)
    return skipped / whole


def spike_fed_matmuls(config: GooseConfig) -> tuple[Operation, ...]:
    """The matrix products of a block that read spikes."""
    plan = layer_plan(config)
    spikes = {operation.output for operation in plan if operation.kind == "encode"}
    return tuple(operation for operation in plan if operation.kind == "matmul" and spikes & set(operation.inputs))
