"""Ten outputs: the finite-width law of the full C x C tangent kernel and of its trace form, against drawn kernels.

    python benchmarks/finite_width_outputs.py [--models mlp cnn] [--depths 1 2 3] [--widths 64 256] [--draws 24]

Digits, one-hot targets, ReLU, ntk parameterisation; the CNN has one convolution. Prints a Markdown table: risk of both
forms, simulated and predicted, and the infinite-width risk, which is the same for both.
"""

import argparse
import math

import torch
from torch import Tensor

from ridgescope.analysis.finite_width import Form, law_kernel, law_of
from ridgescope.analysis.regression import full_kernel_ridge
from ridgescope.models import CNN, MLP, Network, empirical_ntk, infinite_ntk
from ridgescope.theory import kernel_ridge
from ridgescope.train.data import prepare_data

SIZE, TESTS = 100, 200
FORMS: tuple[Form, ...] = ("full", "trace")


def architecture(model: str, depth: int, width: int, outputs: int, seed: int) -> Network:
    options = {"width": width, "depth": depth, "activation": "relu", "generator": torch.Generator().manual_seed(seed)}
    return CNN((1, 8, 8), outputs, **options) if model == "cnn" else MLP((1, 8, 8), outputs, **options)


def drawn_risks(network: Network, x: Tensor, y: Tensor, ridges: list[float]) -> list[list[float]]:
    """Test risk of one network's full and trace kernel, for each ridge."""
    outputs, points = y.shape[1], len(x)
    full = empirical_ntk(network, None, x).view(outputs, points, outputs, points)
    trace = full.diagonal(dim1=0, dim2=2).mean(-1)
    gram = full[:, :SIZE, :, :SIZE].reshape(outputs * SIZE, -1)
    cross = full[:, SIZE:, :, :SIZE].reshape(-1, outputs * SIZE)
    rows = []
    for ridge in ridges:
        coupled = (cross @ full_kernel_ridge(gram, y[:SIZE], ridge).dual).view(outputs, -1).T
        single = trace[SIZE:, :SIZE] @ kernel_ridge(trace[:SIZE, :SIZE], y[:SIZE], ridge).dual
        rows.append([float((y[SIZE:] - f).square().sum(1).mean()) for f in (coupled, single)])
    return rows


def compare(model: str, depth: int, width: int, x: Tensor, y: Tensor, options: argparse.Namespace) -> None:
    networks = [architecture(model, depth, width, y.shape[1], 1000 * width + draw) for draw in range(options.draws)]
    found = torch.tensor([drawn_risks(network, x, y, options.ridges) for network in networks])
    mean, error = found.mean(0), found.std(0) / options.draws**0.5
    limit = infinite_ntk(networks[0], x).ntk
    cells: list[list[str]] = [[] for _ in options.ridges]
    for k, form in enumerate(FORMS):
        try:
            kernel = law_kernel(networks[0], x[:SIZE], x[SIZE:], form=form)
        except ValueError as refusal:
            print(refusal)
            kernel = None
        for i, ridge in enumerate(options.ridges):
            predicted = math.nan
            if kernel is not None:
                predicted = float(law_of(kernel, y[:SIZE], y[SIZE:], width=width, ridge=ridge).test)
            deviation = f"({100 * (predicted / float(mean[i, k]) - 1):+.1f} %)"
            cells[i].append(f"{mean[i, k]:.4f} ± {error[i, k]:.4f} | {predicted:.4f} {deviation}")
    for ridge, row in zip(options.ridges, cells, strict=True):
        fit = kernel_ridge(limit[:SIZE, :SIZE], y[:SIZE], ridge)
        infinite = float((y[SIZE:] - limit[SIZE:, :SIZE] @ fit.dual).square().sum(1).mean())
        print(f"| {model} | {depth} | {width} | {ridge:g} | {' | '.join(row)} | {infinite:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["mlp", "cnn"], default=["mlp"])
    parser.add_argument("--depths", nargs="+", type=int, default=[1])
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--ridges", nargs="+", type=float, default=[1e-2, 1e-4])
    options = parser.parse_args()
    data = prepare_data("digits", train_size=SIZE, pool_size=1297, test_size=TESTS, num_draws=1, seed=7)
    index = data.splits.train[0]
    x = torch.cat([data.pool_inputs[index], data.test_inputs])
    y = torch.cat([data.pool_targets[index], data.test_targets])
    print("| model | depth | N | lam | full: drawn | law | trace: drawn | law | infinite width |\n" + "|---" * 9 + "|")
    for model in options.models:
        for depth in options.depths:
            for width in options.widths:
                compare(model, depth, width, x, y, options)


if __name__ == "__main__":
    main()
