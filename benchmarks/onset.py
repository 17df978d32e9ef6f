"""When finite width begins to dominate the risk, and double descent: kernels of networks as drawn, no training.

    python benchmarks/onset.py [--svg docs/results/onset.svg]

Digits, one-hot targets, MLP with one hidden layer (GELU, NTK parameterisation): regression with each network's own full
tangent kernel and with its last layer's kernel, beside the infinite-width kernel on the same training set and the
finite-width law (on the first training sets only: it costs most). Eight networks, each with its own training set.
"""

import argparse
import platform
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ridgescope.analysis.drawing import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    few_log_ticks,
    figure_bytes,
    new_figure,
    paper_style,
)
from ridgescope.analysis.finite_width import block_kernel
from ridgescope.analysis.regression import squared_error
from ridgescope.analysis.report.regimes import scaling_lines
from ridgescope.analysis.scaling import scaling_table
from ridgescope.models import MLP, conjugate_kernel, empirical_ntk, infinite_ntk, linearised_predict
from ridgescope.theory import kernel_ridge
from ridgescope.theory.blocks import block_law
from ridgescope.train.data import PreparedData, prepare_data

WIDTHS = (2, 4, 6, 8, 12, 16, 32, 64, 128)
SIZES = (10, 20, 40, 80, 160)
RIDGES = (1e-2, 1e-6)
NETWORKS = 8
LAWS = 2  # training sets at which the law is computed
SETTING = {
    "data": "digits", "model": "mlp", "depth": 1, "activation": "gelu", "parameterisation": "ntk", "alpha": 1e3,
    "options": "{}", "training": "{}",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}\n")
    data = prepare_data("digits", train_size=max(SIZES), pool_size=1300, test_size=497, num_draws=NETWORKS)
    table = pd.DataFrame([row for width in WIDTHS for seed in range(NETWORKS) for row in measure(data, width, seed)])
    table = table.assign(**SETTING, run="drawn", converged=True)
    print_risks(table)
    lines = scaling_lines(scaling_table(table), "mlp")
    headings = {
        "size": ("test risk against P: exponent of", "width", "ridge", "measured", "finite-width law"),
        "width": ("finite-width excess against N: beta of", "P", "ridge", "measured", "finite-width law"),
        "onset": ("onset of", "what", "ridge", "measured"),
        "descent": ("double descent of", "along", "at", "ridge", "peak", "where", "height"),
    }
    for kind, rows in lines.items():
        print(f"\n| {' | '.join(headings[kind])} |\n" + "|---" * len(headings[kind]) + "|")
        print("\n".join(f"| {' | '.join(row)} |" for row in rows), flush=True)
    if options.svg:
        options.svg.write_bytes(figure(table))


def measure(data: PreparedData, width: int, seed: int) -> list[dict[str, float]]:
    """Risks of one network's kernels at every size and ridge, with training set number ``seed``."""
    net = MLP(data.in_shape, 10, width=width, depth=1, activation="gelu", generator=torch.Generator().manual_seed(seed))
    net = net.double()
    index = data.splits.train[seed]
    x, y, x_test, y_test = data.pool_inputs[index], data.pool_targets[index], data.test_inputs, data.test_targets
    full = empirical_ntk(net, None, x).view(10, len(x), 10, len(x))
    last, last_test = conjugate_kernel(net, None, x), conjugate_kernel(net, None, x_test, x)
    limit, limit_test = infinite_ntk(net, x).ntk, infinite_ntk(net, x_test, x).ntk
    rows = []
    for size in SIZES:
        gram = full[:, :size, :, :size].reshape(10 * size, 10 * size)
        law = block_kernel(net, x[:size], x_test) if seed < LAWS else None
        for ridge in RIDGES:
            shifted = gram + size * ridge * torch.eye(len(gram), dtype=gram.dtype)
            dual = torch.cholesky_solve(y[:size].T.reshape(-1, 1), torch.linalg.cholesky(shifted))[:, 0]
            row = {"width": width, "P": size, "ridge": ridge, "seed": seed, "draw": seed}
            row["krr_test"] = squared_error(linearised_predict(net, None, x[:size], dual, x_test), y_test)
            for name, k, cross in (("krr_last_test", last, last_test), ("infinite_test", limit, limit_test)):
                dual = kernel_ridge(k[:size, :size], y[:size], ridge).dual
                row[name] = squared_error(cross[:, :size] @ dual, y_test)
            if law is not None:
                row["block_test"] = lawful(law, y[:size], y_test, width, ridge)
            rows.append(row)
    return rows


def lawful(law, y: torch.Tensor, y_test: torch.Tensor, width: int, ridge: float) -> float:  # type: ignore[no-untyped-def]
    """NaN where the law has no fixed point."""
    try:
        return float(block_law(law, y, y_test, width=width, ridge=ridge).test)
    except (ValueError, RuntimeError):
        return float("nan")


def print_risks(table: pd.DataFrame) -> None:
    columns = ["krr_test", "krr_last_test", "infinite_test", "block_test"]
    means = table.groupby(["ridge", "P", "width"])[columns].mean()
    print("| ridge | P | width | kernel | last layer | infinite width | finite-width law |\n" + "|---" * 7 + "|")
    for (ridge, size, width), row in means.iterrows():  # type: ignore[misc]
        print(f"| {ridge:g} | {size} | {width} | " + " | ".join(f"{v:.3g}" for v in row) + " |")


def figure(table: pd.DataFrame) -> bytes:
    """Risk along N at one P and along P at one N, each with and without a ridge."""
    with paper_style():
        drawing = new_figure(4.8)
        grid = drawing.subplots(2, 2, sharey="row")
        for axes, ridge in zip(grid.T, RIDGES, strict=True):
            part = table[table["ridge"] == ridge]
            for row, (axis, fixed, value) in enumerate((("width", "P", 80), ("P", "width", 16))):
                curve = part[part[fixed] == value].groupby(axis)
                for column, colour, label in (
                    ("krr_last_test", GREEN, "last-layer kernel"),
                    ("krr_test", BLUE, "full tangent kernel"),
                    ("block_test", PURPLE, "finite-width law"),
                    ("infinite_test", ORANGE, "infinite width"),
                ):
                    mean = curve[column].mean().dropna()
                    error = curve[column].sem().reindex(mean.index)
                    if column in ("krr_last_test", "krr_test"):
                        axes[row].errorbar(mean.index, mean, error.fillna(0), marker="o", color=colour, label=label)
                    else:
                        axes[row].plot(mean.index, mean, color=colour, ls="--", label=label)
                axes[row].set(xscale="log", yscale="log", xlabel="width N" if axis == "width" else "samples P")
                axes[row].set_title(f"{fixed} = {value}, ridge {ridge:g}")
                few_log_ticks(axes[row].xaxis)
                few_log_ticks(axes[row].yaxis)
        for axes_row in grid:
            axes_row[0].set_ylabel("test risk")
        drawing.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure_bytes(drawing, "svg")


if __name__ == "__main__":
    main()
