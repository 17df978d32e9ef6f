"""The finite-width laws of MLPs against kernel regression with drawn tangent kernels.

    python benchmarks/finite_width.py --out FILE.csv --depths 1 --sizes 100 300 --draws 96
    python benchmarks/finite_width.py --out FILE.csv --depths 2 3 --tests 200 --tolerance 1e-5
    python benchmarks/finite_width.py --summary FILE.csv ...

One row per cell (`finite_width_cells`). Every draw is one network in the ntk parameterisation, its kernel formed from
its layers and decomposed once for all ridges. The file is written after each (data, activation, depth, P, width); the
same command goes on where it was interrupted. ``--tolerance`` is that of the deep law, which bypasses the limit
that `finite_width_law` sets on P/N^2.
"""

import argparse
import math
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from finite_width_cells import POOLS, Row, cells, inputs, summary, sweep
from torch import Tensor

from ridgescope.analysis.finite_width import block_kernel
from ridgescope.analysis.finite_width_depth import deep_kernel
from ridgescope.models import MLP
from ridgescope.models.activations import ACTIVATIONS
from ridgescope.theory.blocks import BlockPrediction, block_law, deep_law

RIDGES = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6]
KEYS = ("data", "activation", "depth", "P", "width")


def drawn_kernel(x: Tensor, width: int, depth: int, activation: str, generator: torch.Generator) -> Tensor:
    """Tangent kernel (n, n) of one network, layer by layer."""
    chosen = ACTIVATIONS[activation]
    values = x / math.sqrt(x.shape[1])
    kernels, slopes, weights = [values @ values.T], [], []
    for layer in range(depth):
        drawn = torch.randn(values.shape[1], width, generator=generator, dtype=torch.float64)
        z = (values @ drawn / (1.0 if layer == 0 else math.sqrt(width))).requires_grad_()
        outputs = chosen.gain * chosen.function(z)
        slopes.append(torch.autograd.grad(outputs.sum(), z)[0])
        values = outputs.detach()
        weights.append(drawn)
        kernels.append(values @ values.T / width)
    signal = torch.randn(width, generator=generator, dtype=torch.float64) * slopes[-1]
    kernel = kernels[depth]
    for layer in reversed(range(depth)):
        kernel = kernel + signal @ signal.T / width * kernels[layer]
        if layer > 0:
            signal = signal @ weights[layer].T / math.sqrt(width) * slopes[layer - 1]
    return kernel


def measure(labels: Row, ridges: list[float], options: argparse.Namespace) -> list[Row]:
    name, activation, depth, size, width = (labels[key] for key in KEYS)
    images, y = inputs(name, size, options.tests)
    x = images.flatten(1)
    generator = torch.Generator().manual_seed(width + (1000 * depth if depth > 1 else 0))
    kernels = (drawn_kernel(x, width, depth, activation, generator) for _ in range(options.draws))
    network = MLP((x.shape[1],), 1, width=width, depth=depth, activation=activation, generator=torch.Generator())
    if depth == 1:
        blocks = block_kernel(network, x)
        limit, block = blocks.limit().train, block_kernel(network, x[:size], x[size:])
    else:
        deep = deep_kernel(network, x[:size], x[size:])
        limit = deep.limit()

    def law(ridge: float, start: list[Tensor] | None) -> BlockPrediction:
        if depth == 1:
            return block_law(block, y[:size], y[size:], width=width, ridge=ridge, start=start)
        return deep_law(deep, y[:size], y[size:], width=width, ridge=ridge, start=start, tolerance=options.tolerance)

    return cells(labels, y, size, ridges, kernels, limit, law)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--summary", type=Path, nargs="+", help="print the tables of these files, compute nothing")
    parser.add_argument("--data", nargs="+", default=list(POOLS))
    parser.add_argument("--activations", nargs="+", default=["relu"])
    parser.add_argument("--depths", nargs="+", type=int, default=[1])
    parser.add_argument("--sizes", nargs="+", type=int, default=[100])
    parser.add_argument("--widths", nargs="+", type=int, default=[8, 16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--ridges", nargs="+", type=float, default=RIDGES)
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--tests", type=int, default=500)
    parser.add_argument("--tolerance", type=float, default=1e-10)
    options = parser.parse_args()
    if options.summary:
        table = pd.concat([pd.read_csv(path) for path in options.summary])
    else:
        grid = product(options.data, options.activations, options.depths, options.sizes, options.widths)
        wanted = [dict(zip(KEYS, key, strict=True)) for key in grid]
        table = sweep(options.out, wanted, options.ridges, partial(measure, options=options))
    for (activation, shallow), rows in table.groupby(["activation", table.depth == 1]):
        by, bounds = (["data", "P"], (0.04, 0.1)) if shallow else (["depth", "P", "width"], (0.05, 0.2))
        print(f"\n{activation}\n\n{summary(rows, by, *bounds)}")


if __name__ == "__main__":
    main()
