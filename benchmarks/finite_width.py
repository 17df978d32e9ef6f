"""The block law of one hidden layer against kernel regression with drawn tangent kernels.

    python benchmarks/finite_width.py --out docs/results/finite_width/one_layer.csv [--sizes 100 300] [--draws 24]

Prints one line per cell (data, P, width, ridge): simulated and predicted test risk, kappa_1, and the excess of the
risk over infinite width. Targets are the parity of the label; inputs centred, of norm sqrt(d). Every draw is one
network in the ntk parameterisation, its kernel formed from its neurons.
"""

import argparse
import math
import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ridgescope.analysis.finite_width import block_kernel
from ridgescope.models import MLP
from ridgescope.models.activations import ACTIVATIONS
from ridgescope.theory.blocks import block_law
from ridgescope.train.data import prepare_data

RIDGES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
POOLS = {"digits": 1297, "fashion_mnist": 4000}


def inputs(name: str, size: int, tests: int) -> tuple[Tensor, Tensor]:
    """Training points first; inputs (n, d) and targets (n, 1)."""
    data = prepare_data(
        name, train_size=size, pool_size=POOLS[name], test_size=tests, num_draws=1, target="parity", seed=7
    )
    index = data.splits.train[0]
    x = torch.cat([data.pool_inputs[index], data.test_inputs]).flatten(1)
    return x, torch.cat([data.pool_targets[index], data.test_targets])


def drawn_kernel(
    x: Tensor, train: int, width: int, activation: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Tangent kernel of one network: (P, P) and (T, P)."""
    d = x.shape[1]
    weights = torch.randn(d, width, generator=generator, dtype=torch.float64)
    squared = torch.randn(width, generator=generator, dtype=torch.float64).square()
    z = (x @ weights / math.sqrt(d)).requires_grad_()
    values = ACTIVATIONS[activation].function(z)
    (slopes,) = torch.autograd.grad(values.sum(), z)
    values = values.detach()
    scale = ACTIVATIONS[activation].gain ** 2 / width
    kernel = values @ values[:train].T + ((slopes * squared) @ slopes[:train].T) * (x @ x[:train].T / d)
    return scale * kernel[:train], scale * kernel[train:]


def regress(gram: Tensor, cross: Tensor, y: Tensor, ridge: float) -> list[float]:
    """kappa_1, test and train risk."""
    size = len(gram)
    factor = torch.linalg.cholesky(gram + size * ridge * torch.eye(size, dtype=torch.float64))
    dual = torch.cholesky_solve(y[:size], factor)
    half = torch.linalg.solve_triangular(factor, torch.eye(size, dtype=torch.float64), upper=False)
    test = (y[size:] - cross @ dual).square().sum(1).mean()
    train = (size * ridge * dual).square().sum(1).mean()
    return [1 / float(half.square().sum()), float(test), float(train)]


def cells(name: str, size: int, tests: int, widths: list[int], draws: int, activation: str) -> list[dict[str, object]]:
    x, y = inputs(name, size, tests)
    network = MLP((x.shape[1],), 1, width=1, depth=1, activation=activation, generator=torch.Generator())
    kernel = block_kernel(network, x[:size], x[size:])
    limit = {ridge: block_law(kernel, y[:size], y[size:], width=math.inf, ridge=ridge) for ridge in RIDGES}
    rows: list[dict[str, object]] = []
    for width in widths:
        generator = torch.Generator().manual_seed(width)
        found: dict[float, list[list[float]]] = {ridge: [] for ridge in RIDGES}
        for _ in range(draws):
            gram, cross = drawn_kernel(x, size, width, activation, generator)
            for ridge in RIDGES:
                found[ridge].append(regress(gram, cross, y, ridge))
        start = None
        for ridge in RIDGES:
            began = time.perf_counter()
            law = block_law(kernel, y[:size], y[size:], width=width, ridge=ridge, start=start)
            seconds, start = time.perf_counter() - began, law.orders
            sample = torch.tensor(found[ridge], dtype=torch.float64)
            mean, error = sample.mean(0).tolist(), (sample.std(0) / draws**0.5).tolist()
            infinite = float(limit[ridge].test)
            excess = mean[1] / infinite - 1
            row: dict[str, object] = {"data": name, "activation": activation, "P": size, "width": width}
            row |= {"ridge": ridge, "draws": draws, "test": mean[1], "test_se": error[1]}
            row |= {"law_test": float(law.test), "infinite_test": infinite}
            row |= {"kappa": mean[0], "kappa_se": error[0], "law_kappa": float(law.kappa1)}
            row |= {"infinite_kappa": float(limit[ridge].kappa1)}
            row |= {"train": mean[2], "train_se": error[2], "law_train": float(law.train), "excess": excess}
            row |= {"law_excess": float(law.test) / infinite - 1, "seconds": seconds, "iterations": law.iterations}
            rows.append(row)
            print(
                f"{name:13s} {activation:4s} P={size:4d} N={width:4d} lam={ridge:.0e}  risk {mean[1]:.4f} "
                f"+-{100 * error[1] / mean[1]:.1f}% law {100 * (float(law.test) / mean[1] - 1):+.1f}%  "
                f"kappa law {100 * (float(law.kappa1) / mean[0] - 1):+.1f}+-{100 * error[0] / mean[0]:.1f}%  "
                f"excess {100 * excess:+.1f}%  {seconds:.1f} s",
                flush=True,
            )
    return rows


def summary(table: pd.DataFrame) -> str:
    deviation = (table.law_test / table.test - 1).abs()
    within = deviation <= (3 * table.test_se / table.test).clip(lower=0.04)
    large = table.excess.abs() > 0.05
    ratio = (table.law_excess / table.excess - 1).abs()
    allowed = (3 * table.test_se / (table.infinite_test * table.excess.abs())).clip(lower=0.10)
    infinite = (table.infinite_test / table.test - 1).abs().median()
    kappa = (table.law_kappa / table.kappa - 1).abs().median()
    return (
        f"{len(table)} cells: |law/risk - 1| median {100 * deviation.median():.2f} %, "
        f"worst {100 * deviation.max():.1f} %, within 4 % or 3 s.e. {int(within.sum())}; "
        f"infinite width: median {100 * infinite:.1f} %; kappa: median {100 * kappa:.2f} %; "
        f"excess above 5 %: {int(large.sum())} cells, median deviation {100 * ratio[large].median():.1f} %, "
        f"within 10 % or 3 s.e. {int((ratio <= allowed)[large].sum())}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", nargs="+", default=list(POOLS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 300])
    parser.add_argument("--widths", nargs="+", type=int, default=[8, 16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--activations", nargs="+", default=["relu"])
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--tests", type=int, default=500)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for name in options.data:
        for activation in options.activations:
            for size in options.sizes:
                rows += cells(name, size, options.tests, options.widths, options.draws, activation)
                if options.out is not None:
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.6g")
    print(summary(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
