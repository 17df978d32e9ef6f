"""The deep law of two and three hidden layers against kernel regression with drawn tangent kernels.

    python benchmarks/finite_width_depth.py --out FILE.csv [--depths 2 3] [--sizes 100] [--widths 8 16 ...]
    python benchmarks/finite_width_depth.py --summary FILE.csv ...

One row per cell (data, depth, P, width, ridge): simulated and predicted test risk, the excess of the risk over infinite
width, kappa_1 (the inverse mean of the resolvent's trace), seconds of law and simulation. A cell that the law refuses
has an empty prediction. Targets are the parity of the label; ReLU, ntk parameterisation, inputs centred, of norm
sqrt(d).
"""

import argparse
import math
import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ridgescope.analysis.finite_width_depth import deep_kernel
from ridgescope.models import MLP
from ridgescope.models.activations import ACTIVATIONS
from ridgescope.theory.blocks import BlockPrediction, deep_law
from ridgescope.train.data import prepare_data

RIDGES = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6]
POOLS = {"digits": 1297, "fashion_mnist": 4000}


def inputs(name: str, size: int, tests: int, draw: int = 0) -> tuple[Tensor, Tensor]:
    """Training set number ``draw`` first; inputs (n, *shape) and targets (n, 1)."""
    data = prepare_data(
        name, train_size=size, pool_size=POOLS[name], test_size=500, num_draws=draw + 1, target="parity", seed=7
    )
    index = data.splits.train[draw]
    x = torch.cat([data.pool_inputs[index], data.test_inputs[:tests]])
    return x, torch.cat([data.pool_targets[index], data.test_targets[:tests]])


def drawn_kernel(
    x: Tensor, train: int, width: int, depth: int, activation: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Tangent kernel of one network, layer by layer: (P, P) and (T, P)."""
    chosen = ACTIVATIONS[activation]
    values = x / math.sqrt(x.shape[1])
    kernels, slopes, weights = [values @ values[:train].T], [], []
    for layer in range(depth):
        drawn = torch.randn(values.shape[1], width, generator=generator, dtype=torch.float64)
        z = (values @ drawn / (1.0 if layer == 0 else math.sqrt(width))).requires_grad_()
        outputs = chosen.gain * chosen.function(z)
        slopes.append(torch.autograd.grad(outputs.sum(), z)[0])
        values = outputs.detach()
        weights.append(drawn)
        kernels.append(values @ values[:train].T / width)
    signal = torch.randn(width, generator=generator, dtype=torch.float64) * slopes[-1]
    kernel = kernels[depth]
    for layer in reversed(range(depth)):
        kernel = kernel + signal @ signal[:train].T / width * kernels[layer]
        if layer > 0:
            signal = signal @ weights[layer].T / math.sqrt(width) * slopes[layer - 1]
    return kernel[:train], kernel[train:]


def regress(gram: Tensor, cross: Tensor, y: Tensor, ridges: list[float]) -> list[list[float]]:
    """1/kappa_1 and test risk, per ridge."""
    size = len(gram)
    values, vectors = torch.linalg.eigh(gram)
    found = []
    for ridge in ridges:
        inverse = 1 / (values.clamp_min(0) + size * ridge)
        dual = vectors @ (inverse[:, None] * (vectors.T @ y[:size]))
        found.append([float(inverse.sum()), float((y[size:] - cross @ dual).square().sum(1).mean())])
    return found


def cells(name: str, depth: int, size: int, width: int, options: argparse.Namespace) -> list[dict[str, object]]:
    images, y = inputs(name, size, options.tests)
    x = images.flatten(1)
    generator = torch.Generator().manual_seed(1000 * depth + width)
    began = time.perf_counter()
    draws = [
        regress(*drawn_kernel(x, size, width, depth, options.activation, generator), y, options.ridges)
        for _ in range(options.draws)
    ]
    drawn_seconds = (time.perf_counter() - began) / len(options.ridges)
    sample = torch.tensor(draws, dtype=torch.float64)  # (draws, ridges, 2)
    mean, error = sample.mean(0), sample.std(0) / options.draws**0.5
    network = MLP(
        (x.shape[1],), 1, width=width, depth=depth, activation=options.activation, generator=torch.Generator()
    )
    kernel = deep_kernel(network, x[:size], x[size:])
    limit = kernel.limit()
    rows, start = [], None
    for i, ridge in enumerate(options.ridges):
        _, infinite = regress(limit[:size, :size], limit[size:, :size], y, [ridge])[0]
        law: BlockPrediction | None = None
        began = time.perf_counter()
        try:
            law = deep_law(kernel, y[:size], y[size:], width=width, ridge=ridge, start=start)
            start = law.orders
        except (ValueError, RuntimeError) as refusal:
            print(refusal)
        seconds = time.perf_counter() - began
        test, kappa = (float(law.test), float(law.kappa1)) if law else (math.nan, math.nan)
        row: dict[str, object] = {"data": name, "activation": options.activation, "depth": depth, "P": size}
        row |= {"width": width, "ridge": ridge, "draws": options.draws, "test": float(mean[i, 1])}
        row |= {"test_se": float(error[i, 1]), "law_test": test, "infinite_test": infinite}
        row |= {"kappa": 1 / float(mean[i, 0]), "law_kappa": kappa, "excess": float(mean[i, 1]) / infinite - 1}
        row |= {"law_excess": test / infinite - 1, "seconds": seconds, "drawn_seconds": drawn_seconds}
        row |= {"iterations": law.iterations if law else 0}
        rows.append(row)
        print(
            f"{name:13s} L={depth} P={size} N={width:4d} lam={ridge:.0e}  risk {mean[i, 1]:.4f} "
            f"+-{100 * error[i, 1] / mean[i, 1]:.1f}% law {100 * (test / mean[i, 1] - 1):+.1f}%  "
            f"excess {100 * (mean[i, 1] / infinite - 1):+.0f}% ratio "
            f"{(test / infinite - 1) / (mean[i, 1] / infinite - 1):.2f}  {seconds:.1f} s",
            flush=True,
        )
    return rows


def summary(table: pd.DataFrame) -> str:
    """One markdown row per depth, P and width: median and worst deviation of the risk, deviation of the excess."""
    table = table.assign(
        deviation=(table.law_test / table.test - 1).abs(),
        infinite=(table.infinite_test / table.test - 1).abs(),
        ratio=(table.law_excess / table.excess - 1).abs().where(table.excess > 0.05 * table.test / table.infinite_test),
    )
    lines = [
        "| layers | P | width | cells | infinite width: median | risk: median | worst | excess: median | worst | "
        "within 20 % or 3 s.e. | refused | s per cell |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (depth, size, width), part in table.groupby(["depth", "P", "width"]):
        known = part[part.ratio.notna()]
        allowed = (3 * known.test_se / (known.infinite_test * known.excess)).clip(lower=0.2)
        lines.append(
            f"| {depth} | {size} | {width} | {len(part)} | {100 * part.infinite.median():.1f} % | "
            f"{100 * part.deviation.median():.1f} % | {100 * part.deviation.max():.1f} % | "
            f"{100 * known.ratio.median():.0f} % | {100 * known.ratio.max():.0f} % | "
            f"{int((known.ratio <= allowed).sum())} of {len(known)} | {int(part.law_test.isna().sum())} | "
            f"{part.seconds.median():.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--summary", type=Path, nargs="+")
    parser.add_argument("--data", nargs="+", default=list(POOLS))
    parser.add_argument("--depths", nargs="+", type=int, default=[2, 3])
    parser.add_argument("--sizes", nargs="+", type=int, default=[100])
    parser.add_argument("--widths", nargs="+", type=int, default=[8, 16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--ridges", nargs="+", type=float, default=RIDGES)
    parser.add_argument("--activation", default="relu")
    parser.add_argument("--draws", type=int, default=48)
    parser.add_argument("--tests", type=int, default=200)
    options = parser.parse_args()
    if options.summary:
        print(summary(pd.concat([pd.read_csv(path) for path in options.summary])))
        return
    rows: list[dict[str, object]] = []
    for name in options.data:
        for depth in options.depths:
            for size in options.sizes:
                for width in options.widths:
                    rows += cells(name, depth, size, width, options)
                    if options.out is not None:
                        options.out.parent.mkdir(parents=True, exist_ok=True)
                        pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.6g")
    print(summary(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
