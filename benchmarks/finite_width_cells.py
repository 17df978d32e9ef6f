"""What the benchmarks of the finite-width laws share: the data, a cell's row, the file of cells, the summary.

A cell is a data set, an architecture, a number of training points P, a width and a ridge. Its row has the test risk,
the train risk and kappa_1 (inverse mean of the resolvent's trace) of drawn kernels with their standard errors, what the
law says, and both of the infinite-width kernel. A cell that the law refuses has an empty prediction. Targets are the
parity of the label; inputs centred, of norm sqrt(d).
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ridgescope.theory.blocks import BlockPrediction
from ridgescope.train.data import prepare_data
from ridgescope.train.files import write_atomically

POOLS = {"digits": 1297, "fashion_mnist": 4000}
QUANTITIES = ("kappa", "test", "train")
Row = dict[str, object]
Law = Callable[[float, list[Tensor] | None], BlockPrediction]  # of a ridge and a neighbour's orders


def inputs(name: str, size: int, tests: int, draw: int = 0) -> tuple[Tensor, Tensor]:
    """Training set number ``draw`` first; inputs (n, *shape) and targets (n, 1)."""
    data = prepare_data(
        name, train_size=size, pool_size=POOLS[name], test_size=500, num_draws=draw + 1, target="parity", seed=7
    )
    index = data.splits.train[draw]
    x = torch.cat([data.pool_inputs[index], data.test_inputs[:tests]])
    return x, torch.cat([data.pool_targets[index], data.test_targets[:tests]])


def regress(kernel: Tensor, y: Tensor, size: int, ridges: Sequence[float]) -> list[list[float]]:
    """1/kappa_1, test and train risk of ``kernel`` (n, >= size), for each ridge."""
    values, vectors = torch.linalg.eigh(kernel[:size, :size])
    target, reach = vectors.T @ y[:size], kernel[size:, :size] @ vectors
    found = []
    for ridge in ridges:
        inverse = 1 / (values.clamp_min(0) + size * ridge)[:, None]
        test = (y[size:] - reach @ (inverse * target)).square().sum(1).mean()
        train = (size * ridge * inverse * target).square().sum() / size
        found.append([float(inverse.sum()), float(test), float(train)])
    return found


def cells(
    labels: Row, y: Tensor, size: int, ridges: Sequence[float], kernels: Iterable[Tensor], limit: Tensor, law: Law
) -> list[Row]:
    """A row per ridge: regression on ``kernels``, drawn ones on all points, beside the law and infinite width."""
    began = time.perf_counter()
    sample = torch.tensor([regress(kernel, y, size, ridges) for kernel in kernels], dtype=torch.float64)
    labels = labels | {"draws": len(sample), "drawn_seconds": (time.perf_counter() - began) / len(ridges)}
    mean, error = sample.mean(0), sample.std(0) / len(sample) ** 0.5
    mean[:, 0] = 1 / mean[:, 0]  # the law gives the mean of 1/kappa
    error[:, 0] *= mean[:, 0] ** 2
    infinite = regress(limit, y, size, ridges)
    rows, start = [], None
    for i, ridge in enumerate(ridges):
        predicted, iterations, began = dict.fromkeys(QUANTITIES, math.nan), 0, time.perf_counter()
        try:
            found = law(ridge, start)
            start, iterations = found.orders, found.iterations
            predicted = {"kappa": float(found.kappa1), "test": float(found.test), "train": float(found.train)}
        except (ValueError, RuntimeError) as refusal:
            print(refusal)
        row = labels | {"ridge": ridge, "seconds": time.perf_counter() - began, "iterations": iterations}
        for k, name in enumerate(QUANTITIES):
            row |= {name: float(mean[i, k]), f"{name}_se": float(error[i, k]), f"law_{name}": predicted[name]}
        row |= {"infinite_kappa": 1 / infinite[i][0], "infinite_test": infinite[i][1]}
        rows.append(row)
    return rows


def sweep(
    path: Path, wanted: Iterable[Row], ridges: Sequence[float], measure: Callable[[Row, list[float]], list[Row]]
) -> pd.DataFrame:
    """``measure`` for each labels of ``wanted``, written to ``path`` at once; ridges that are there are left out."""
    table = pd.read_csv(path, dtype={"strides": str}) if path.is_file() else pd.DataFrame()
    path.parent.mkdir(parents=True, exist_ok=True)
    for labels in wanted:
        there = table
        for name, value in labels.items():
            there = there if there.empty else there[there[name] == value]
        left = [ridge for ridge in ridges if there.empty or ridge not in set(there.ridge)]
        if not left:
            continue
        rows = pd.DataFrame(measure(labels, left))
        table = pd.concat([table, rows], ignore_index=True)
        write_atomically(path, partial(table.to_csv, index=False, float_format="%.6g"))
        for row in judged(rows).to_dict("records"):
            print(f"{describe(row, list(labels))}, {row['seconds']:.1f} s", flush=True)
    return table


def judged(table: pd.DataFrame, risk: float = 0.05, excess: float = 0.2) -> pd.DataFrame:
    """Deviations, and whether each cell meets its bound or three standard errors. Excess: over infinite width, where
    it is above 5 % of the risk."""
    error = table.test_se / table.test
    over, predicted = table.test / table.infinite_test - 1, table.law_test / table.infinite_test - 1
    large = ((table.test - table.infinite_test).abs() > 0.05 * table.test) & table.law_test.notna()
    table = table.assign(
        error=error,
        excess=over,
        deviation=table.law_test / table.test - 1,
        excess_deviation=(predicted / over - 1).where(large),
        kappa_deviation=table.law_kappa / table.kappa - 1,
        infinite_deviation=table.infinite_test / table.test - 1,
    )
    off, over_off = table.deviation.abs(), table.excess_deviation.abs()
    return table.assign(
        strictly=off <= risk,
        good=off <= (3 * error).clip(lower=risk),
        excess_strictly=over_off <= excess,
        excess_good=over_off <= (3 * table.test_se / (table.infinite_test * over.abs())).clip(lower=excess),
    )


def summary(table: pd.DataFrame, by: list[str], risk: float = 0.05, excess: float = 0.2) -> str:
    """A Markdown table with a line for each group of cells, and one for all; then the cells outside a bound."""
    table = judged(table, risk, excess)
    heads = [*by, "cells", "s.e.", "infinite width: median", "risk: median, worst"]
    heads += [f"within {100 * risk:.0f} % (or 3 s.e.)", "excess > 5 %: cells, median"]
    heads += [f"within {100 * excess:.0f} % (or 3 s.e.)", "kappa: median, worst", "refused", "s per cell"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    groups = [*table.groupby(by), (("all", *[""] * (len(by) - 1)), table)]
    for key, part in groups:
        large = part[part.excess_deviation.notna()]
        over = f"{len(large)}, {_median(large.excess_deviation)}" if len(large) else "0"
        values = [*key, len(part), _median(part.error), _median(part.infinite_deviation), _range(part.deviation)]
        values += [f"{part.strictly.sum()} ({part.good.sum()})", over]
        values += [f"{large.excess_strictly.sum()} ({large.excess_good.sum()})", _range(part.kappa_deviation)]
        values += [part.law_test.isna().sum(), f"{part.seconds.median():.1f}"]
        lines.append(f"| {' | '.join(map(str, values))} |")
    missed = table[~table.good & table.law_test.notna() | table.excess_deviation.notna() & ~table.excess_good]
    return "\n".join(
        [*lines, "", *(describe(row, list(dict.fromkeys(["data", *by, "width"]))) for row in missed.to_dict("records"))]
    )


def describe(row: dict[str, object], by: Sequence[str]) -> str:
    """One judged cell in one line."""
    cell = " ".join([*(f"{name}={row[name]}" for name in by), f"ridge={row['ridge']:.0e}"])
    return (
        f"- {cell}: law/risk {100 * row['deviation']:+.1f} ± {100 * row['error']:.1f} %, excess "
        f"{100 * row['excess']:.0f} %, of which the law is off by {100 * row['excess_deviation']:+.0f} %, kappa "
        f"{100 * row['kappa_deviation']:+.1f} %"
    )


def _median(values: pd.Series) -> str:
    return f"{100 * values.abs().median():.1f} %"


def _range(values: pd.Series) -> str:
    return f"{100 * values.abs().median():.1f}, {100 * values.abs().max():.1f} %"
