"""The student's layer as a fixed list of typed operations: one description that counters and exporters can read."""

from collections.abc import Sequence
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
    sites = set(cast(dict[str, Any], config.spikes)["sites"])
    plan = [Operation("norm", "mixer_norm", ("x",), "normed"), Operation("shift", "", ("normed",), "previous")]
    for role, module in (("k", "key"), ("v", "value"), ("r", "receptance")):
        plan.append(Operation("elementwise", "", ("normed", "previous"), f"x_{role}"))
        plan.append(Operation("matmul", f"mixer.{module}", (f"x_{role}",), f"{role}_dense", width * width))
    for site in ("k", "v"):
        kind: OperationKind = "encode" if site in sites else "elementwise"
        plan.append(Operation(kind, f"mixer.encoders.{site}" if site in sites else "", (f"{site}_dense",), site))
    plan += [
        Operation("scan", "mixer", ("k", "v"), "state"),
        Operation("matmul", "mixer.output", ("state",), "read", width * width),
        Operation("elementwise", "", ("x", "r_dense", "read"), "x_mixed"),
        Operation("norm", "feed_forward_norm", ("x_mixed",), "ffn_in"),
        Operation("matmul", "feed_forward.up", ("ffn_in",), "ffn_up", width * inner),
    ]
    gated = ("ffn_gate",) if config.mlp == "swiglu" else ()
    if gated:
        plan.append(Operation("matmul", "feed_forward.gate", ("ffn_in",), "ffn_gate", width * inner))
    plan += [
        Operation("elementwise", "", ("ffn_up", *gated), "ffn_mid"),
        Operation("matmul", "feed_forward.down", ("ffn_mid",), "ffn_out", width * inner),
        Operation("elementwise", "", ("x_mixed", "ffn_out"), "x_next"),
    ]
    return tuple(plan)


def macs_per_token(config: GooseConfig) -> int:
    """Multiply-accumulates of all matrix products a token passes, head included, embedding lookups not."""
    block = sum(operation.macs for operation in layer_plan(config))
    return config.num_hidden_layers * block + config.hidden_size * config.vocab_size


def spike_fed_mac_share(config: GooseConfig) -> float:
    """Share of those multiply-accumulates whose input is a spike tensor, from 0 to 1: what events could skip."""
    plan = layer_plan(config)
    fed = sum(operation.macs for operation in plan if set(operation.inputs) & _spike_tensors(plan))
    return config.num_hidden_layers * fed / macs_per_token(config)


def _spike_tensors(plan: Sequence[Operation]) -> set[str]:
    return {operation.output for operation in plan if operation.kind == "encode"}
