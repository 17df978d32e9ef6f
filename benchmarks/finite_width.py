"""The block law of one hidden layer against kernel regression with drawn tangent kernels.

    python benchmarks/finite_width.py --out docs/results/finite_width.csv --sizes 100 300 --minutes 9
    python benchmarks/finite_width.py --out docs/results/finite_width.csv --summary

One row per cell (data, P, width, ridge): simulated and predicted test risk, kappa_1 (harmonic mean over draws), and the
excess of the risk over infinite width. Targets are the parity of the label; inputs centred, of norm sqrt(d). Every draw
is one network in the ntk parameterisation, its kernel formed from its neurons and decomposed once for all ridges. The
file is written after each (data, P, width); what it holds already is not computed again, and no more is begun after
``--minutes``.
"""

import argparse
import itertools
import math
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ridgescope.analysis.finite_width import block_kernel
from ridgescope.models import MLP
from ridgescope.models.activations import ACTIVATIONS
from ridgescope.theory.blocks import BlockPrediction, block_law
from ridgescope.theory.blocks.fixed_point import Orders
from ridgescope.train.data import prepare_data
from ridgescope.train.files import write_atomically

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


def regress(gram: Tensor, cross: Tensor, y: Tensor) -> list[list[float]]:
    """For each of ``RIDGES``: kappa_1, test and train risk."""
    size = len(gram)
    values, vectors = torch.linalg.eigh(gram)
    target, reach = vectors.T @ y[:size], cross @ vectors
    found = []
    for ridge in RIDGES:
        inverse = 1 / (values.clamp_min(0) + size * ridge)[:, None]
        test = (y[size:] - reach @ (inverse * target)).square().sum(1).mean()
        train = (size * ridge * inverse * target).square().sum() / size
        found.append([1 / float(inverse.sum()), float(test), float(train)])
    return found


class Problem:
    """One training and test set, its families of blocks, and the infinite-width risks."""

    def __init__(self, name: str, size: int, tests: int, activation: str) -> None:
        self.name, self.size, self.activation = name, size, activation
        self.x, self.y = inputs(name, size, tests)
        network = MLP((self.x.shape[1],), 1, width=1, depth=1, activation=activation, generator=torch.Generator())
        self.kernel = block_kernel(network, self.x[:size], self.x[size:])
        limit = self.kernel.limit()
        self.limit = regress(limit.train, limit.cross, self.y)

    def law(self, width: float, ridge: float, start: Orders | None = None) -> BlockPrediction:
        targets = self.y[: self.size], self.y[self.size :]
        return block_law(self.kernel, *targets, width=width, ridge=ridge, start=start)

    def drawn(self, width: int, draws: int) -> Tensor:
        """(draws, ridges, 3): kappa_1, test and train risk of each network's kernel."""
        generator = torch.Generator().manual_seed(width)
        kernels = (drawn_kernel(self.x, self.size, width, self.activation, generator) for _ in range(draws))
        return torch.tensor([regress(*kernel, self.y) for kernel in kernels], dtype=torch.float64)

    def rows(self, width: int, draws: int) -> list[dict[str, object]]:
        found = self.drawn(width, draws)
        found[..., 0] = 1 / found[..., 0]  # the law gives the mean of 1/kappa = tr (K + P lam)^-1
        mean, error = found.mean(0), found.std(0) / draws**0.5
        mean[:, 0] = 1 / mean[:, 0]
        error[:, 0] *= mean[:, 0] ** 2
        rows: list[dict[str, object]] = []
        start = None
        for i, ridge in enumerate(RIDGES):
            began = time.perf_counter()
            law = self.law(width, ridge, start)
            seconds, start = time.perf_counter() - began, law.orders
            row: dict[str, object] = {"data": self.name, "activation": self.activation, "P": self.size}
            row |= {"width": width, "ridge": ridge, "draws": draws}
            measured = (("kappa", law.kappa1), ("test", law.test), ("train", law.train))
            for k, (quantity, predicted) in enumerate(measured):
                row |= {quantity: float(mean[i, k]), f"{quantity}_se": float(error[i, k])}
                row[f"law_{quantity}"] = float(predicted)
            row |= {"infinite_kappa": self.limit[i][0], "infinite_test": self.limit[i][1]}
            row |= {"seconds": seconds, "iterations": law.iterations}
            rows.append(row)
        return rows


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """Deviations and whether each cell meets its bound: risk 4 %, excess 10 % where above 5 %, or 3 standard errors."""
    excess, error = table.test / table.infinite_test - 1, table.test_se / table.test
    deviation = table.law_test / table.test - 1
    excess_deviation = ((table.law_test / table.infinite_test - 1) / excess - 1).where(excess.abs() > 0.05)
    excess_error = table.test_se / (table.infinite_test * excess.abs())
    return table.assign(
        deviation=deviation,
        error=error,
        excess=excess,
        excess_deviation=excess_deviation,
        kappa_deviation=table.law_kappa / table.kappa - 1,
        infinite_deviation=table.infinite_test / table.test - 1,
        good=deviation.abs() <= (3 * error).clip(lower=0.04),
        strictly=deviation.abs() <= 0.04,
        excess_good=excess_deviation.isna() | (excess_deviation.abs() <= (3 * excess_error).clip(lower=0.10)),
        excess_strictly=excess_deviation.isna() | (excess_deviation.abs() <= 0.10),
    )


def summary(table: pd.DataFrame) -> str:
    """A Markdown table with a line per data set and size, and one for everything."""
    table = judged(table)
    lines = [
        "| data | P | cells | risk: median, worst | within 4 % (or 3 s.e.) | excess > 5 %: cells, median | "
        "within 10 % (or 3 s.e.) | kappa: median, worst | infinite width, risk: median, worst |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups = [((str(a), str(b)), rows) for (a, b), rows in table.groupby(["data", "P"])]
    for (name, size), rows in [*groups, (("all", ""), table)]:
        large = rows[rows.excess_deviation.notna()]
        percent = {
            name: f"{100 * rows[name].abs().median():.2f}, {100 * rows[name].abs().max():.1f} %"
            for name in ("deviation", "kappa_deviation", "infinite_deviation")
        }
        lines.append(
            f"| {name} | {size} | {len(rows)} | {percent['deviation']} | {rows.strictly.sum()} ({rows.good.sum()}) | "
            f"{len(large)}, {100 * large.excess_deviation.abs().median():.1f} % | "
            f"{large.excess_strictly.sum()} ({large.excess_good.sum()}) | {percent['kappa_deviation']} | "
            f"{percent['infinite_deviation']} |"
        )
    return "\n".join(lines)


def misses(table: pd.DataFrame) -> str:
    """The cells outside either bound."""
    table = judged(table)
    lines = []
    for row in table[~(table.good & table.excess_good)].itertuples():
        lines.append(
            f"{row.data} {row.activation} P={row.P} N={row.width} lam={row.ridge:.0e}: law/risk "
            f"{100 * row.deviation:+.1f} +- {100 * row.error:.1f} %, excess {100 * row.excess:.0f} %, "
            f"of which the law is off by {100 * row.excess_deviation:+.0f} %"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", nargs="+", default=list(POOLS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 300])
    parser.add_argument("--widths", nargs="+", type=int, default=[8, 16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--activations", nargs="+", default=["relu"])
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--tests", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--summary", action="store_true", help="print the table of what is there, compute nothing")
    options = parser.parse_args()
    table = pd.read_csv(options.out) if options.out.is_file() else pd.DataFrame()
    began, problem, todo = time.monotonic(), None, []
    keys = ("data", "activation", "P", "width")
    done = set() if table.empty else set(table[list(keys)].itertuples(index=False, name=None))
    if not options.summary:
        wanted = itertools.product(options.data, options.activations, options.sizes, options.widths)
        todo = [key for key in wanted if key not in done]
    for name, activation, size, width in todo:
        if time.monotonic() - began > 60 * options.minutes:
            print(f"out of time before {name} {activation} P={size} N={width}; the same command goes on")
            break
        if problem is None or (problem.name, problem.activation, problem.size) != (name, activation, size):
            problem = Problem(name, size, options.tests, activation)
        table = pd.concat([table, pd.DataFrame(problem.rows(width, options.draws))], ignore_index=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out, partial(table.to_csv, index=False, float_format="%.6g"))
        print(f"{name} {activation} P={size} N={width}: {time.monotonic() - began:.0f} s", flush=True)
    for activation, rows in table.groupby("activation"):
        print(f"\n{activation}\n{summary(rows)}\n{misses(rows)}")


if __name__ == "__main__":
    main()
