"""The generalised delta rule in chunks against the plain loop over time: correct first, then timed in the same run.

Forward and backward, in float32 or with bfloat16 receptance, key and value, at the sizes of a converted SmolLM2-135M
layer: 9 reading heads over 3 states of 64 x 64. Values, final state and every gradient are compared with the float64
loop on a smaller batch; exit code 1 if one is wrong. Speed decides nothing.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from asnn_goose.kernels.delta_chunk import delta_rule_chunked
from asnn_goose.kernels.delta_reference import delta_rule_reference

HEADS, GROUP, WIDTH = 3, 3, 64
CHECKED_BATCH, CHECKED_TIME = 2, 200
# Over 200 dependent steps; a wrong index or sign is off by 1. Only the Triton form multiplies in bfloat16.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
Rule = Callable[..., tuple[Tensor, Tensor]]


def make_inputs(batch: int, steps: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """The same random inputs each time: ternary keys of length at most 1, decays over the whole range."""
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def ternary() -> Tensor:
        return torch.randint(-1, 2, (batch, steps, HEADS, WIDTH), generator=generator).double()

    key = ternary()
    key = key * key.square().sum(-1, keepdim=True).clamp_min(1).rsqrt()
    tensors = [
        uniform(batch, steps, HEADS, GROUP, WIDTH) - 0.5, key, ternary(), -0.6065 * uniform(batch, steps, HEADS) ** 4,
        uniform(batch, steps, HEADS), uniform(batch, steps, HEADS), uniform(batch, HEADS, WIDTH, WIDTH) - 0.5,
    ]  # fmt: skip
    rest = torch.float32 if dtype == torch.bfloat16 else dtype
    kinds = [dtype] * 3 + [rest] * 4
    return [tensor.to(device, kind).requires_grad_() for tensor, kind in zip(tensors, kinds, strict=True)]


def run(rule: Rule, inputs: list[Tensor]) -> list[Tensor]:
    """What is read, the final state, and all gradients for fixed incoming gradients."""
    generator = torch.Generator().manual_seed(1)
    outputs = rule(*inputs, None)
    incoming = [torch.randn(output.shape, generator=generator).to(output) for output in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, incoming)]


def largest_error(rule: Rule, dtype: torch.dtype, device: str) -> float:
    """The largest deviation from the float64 loop, relative to the norm of the same tensor."""
    given = make_inputs(CHECKED_BATCH, CHECKED_TIME, dtype, device)
    expected = run(delta_rule_reference, [tensor.detach().double().requires_grad_() for tensor in given])
    found = run(rule, given)
    return max(
        float((value.detach().double() - truth.detach()).norm() / truth.detach().norm())
        for value, truth in zip(found, expected, strict=True)
    )


def median_ms(rule: Rule, inputs: list[Tensor], repeats: int) -> float:
    """Median time of one forward and backward after two warm-ups."""
    outputs = rule(*inputs, None)
    incoming = [torch.randn_like(output) for output in outputs]
    times = []
    for _ in range(repeats + 2):
        _wait()
        start = time.perf_counter()
        torch.autograd.grad(rule(*inputs, None), inputs, incoming)
        _wait()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[2:])


def fla_rule(
    receptance: Tensor, key: Tensor, value: Tensor, log_decay: Tensor, erase: Tensor, write: Tensor,
    initial_state: Tensor, valid: None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Fla's chunked kernel: one state a reading head, a decay a channel, bfloat16; another library's, so not judged."""
    from fla.ops.rwkv7 import chunk_rwkv7

    def a_head(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(GROUP, dim=2).bfloat16()

    keys = a_head(key)
    read, state = chunk_rwkv7(
        receptance.flatten(2, 3).bfloat16(),
        a_head(log_decay).unsqueeze(-1).expand_as(keys).contiguous(),
        keys,
        a_head(write.unsqueeze(-1) * value),
        -a_head(erase.unsqueeze(-1) * key),
        keys,
        initial_state=initial_state.mT.repeat_interleave(GROUP, dim=1).contiguous(),
        output_final_state=True,
        safe_gate=True,
        chunk_size=16,
    )
    return read.unflatten(2, (HEADS, GROUP)).float(), state[:, ::GROUP].mT


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> int:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=2, help="rows")
    parser.add_argument("--steps", type=int, default=512, help="tokens of a row")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs after two warm-ups")
    parser.add_argument("--bfloat16", action="store_true", help="the Triton form alone, of bfloat16 inputs")
    parser.add_argument("--compile", action="store_true", help="also time the chunked form compiled")
    parser.add_argument("--fla", action="store_true", help="also fla's rwkv7 kernel, reported beside ours")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if options.bfloat16 else torch.float32
    rules: dict[str, Rule] = {} if options.bfloat16 else {"loop": delta_rule_reference}
    for chunk in () if options.bfloat16 else (16, 32, 64):
        rules[f"chunks of {chunk}"] = partial(delta_rule_chunked, chunk=chunk)
        if options.compile:
            rules[f"chunks of {chunk}, compiled"] = torch.compile(
                partial(delta_rule_chunked, chunk=chunk), dynamic=False
            )
    if device == "cuda":
        from asnn_goose.kernels.delta_triton import delta_rule_triton

        rules["triton"] = delta_rule_triton
        if options.fla:
            rules["fla rwkv7, bfloat16"] = fla_rule
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.processor()}, {torch.get_num_threads()} threads"
    )
    table = Table(title=f"delta rule, forward + backward, {options.batch} x {options.steps}, {dtype}, {name}")
    for column in ("form", "median ms", "times faster", "largest relative error"):
        table.add_column(column, justify="left" if column == "form" else "right")
    inputs = make_inputs(options.batch, options.steps, dtype, device)
    worst, baseline = 0.0, 0.0
    for form, rule in rules.items():
        error = largest_error(rule, dtype, device)
        elapsed = median_ms(rule, inputs, options.repeats)
        baseline = baseline or elapsed
        worst = max(worst, 0.0 if rule is fla_rule else error)
        table.add_row(form, f"{elapsed:.2f}", f"{baseline / elapsed:.1f}", f"{error:.1e}")
        print(f"{form}: {elapsed:.2f} ms, error {error:.1e}", flush=True)
    Console().print(table)
    return 0 if worst <= TOLERANCE[dtype] else 1


if __name__ == "__main__":
    sys.exit(main())
