"""Linear layers of SmolLM2-135M on a CPU: oneDNN against torch's own, correct first, then timed in the same run.

Float32, 4 rows of 256 tokens, both by turns; the median of each. Exit code 1 if a product is wrong; speed decides
nothing.

    python benchmarks/cpu_linear.py
"""

import statistics
import sys
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from asnn_goose.models.cpu_linear import onednn_linears

TOKENS = (4, 256)
SHAPES = ((576, 576), (576, 192), (576, 1536), (1536, 576))
# Of a product's largest number: a thousand and a half float32 roundings.
TOLERANCE = 1e-5
REPEATS = 30


def seconds(layer: nn.Linear, x: Tensor) -> float:
    """Of one product."""
    started = time.perf_counter()
    layer(x)
    return time.perf_counter() - started


@torch.no_grad()
def main() -> int:
    """Check, time, print."""
    torch.manual_seed(0)
    table = Table("layer", "largest error, relative", "of torch's time")
    wrong = False
    for width, columns in SHAPES:
        layer, x = nn.Linear(width, columns, bias=False), torch.randn(*TOKENS, width)
        exact = x.double() @ layer.weight.double().T
        with onednn_linears(layer):
            error = float((layer(x) - exact).abs().max() / exact.abs().max())
        layer(x)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(REPEATS):
            times[0].append(seconds(layer, x))
            with onednn_linears(layer):
                times[1].append(seconds(layer, x))
        own, onednn = (statistics.median(found) for found in times)
        wrong |= error > TOLERANCE
        table.add_row(f"{width} to {columns}", f"{error:.1e}", f"{onednn / own:.2f}")
    Console().print(table)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
