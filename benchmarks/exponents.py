"""Power laws on real data: capacity and source of kernels, predicted and measured learning-curve exponents.

    python benchmarks/exponents.py [--data digits fashion_mnist] [--kernels mlp cnn] [--points 1400]

ReLU NTKs of an MLP and a CNN (as in kappa_audit.py) on digits and Fashion-MNIST, unit-norm inputs, one-hot targets.
"""

import argparse
import platform

import numpy as np
import torch
from kappa_audit import kernel

from ridgescope.analysis.exponents import Slope, learning_curve_exponents

SIZES = (50, 100, 200, 400, 700)


def interval(one: Slope) -> str:
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["digits", "fashion_mnist"])
    parser.add_argument("--kernels", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--points", type=int, default=1400)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}\n")
    head = (
        "kernel",
        "ridge",
        "capacity alpha",
        "source r",
        "predicted slope",
        "measured slope",
        "measured/predicted - 1, %",
    )
    print(f"| {' | '.join(head)} |\n" + "|---" * len(head) + "|")
    for name in options.data:
        for kind in options.kernels:
            gram, targets = kernel(name, kind, True, options.points)
            for ridge in (1e-6, 1e-3):
                found = learning_curve_exponents(gram, targets, sizes=SIZES, ridge=ridge)
                values = [found.capacity, found.source, found.predicted, found.measured]
                ratio = 100 * (found.measured.value / found.predicted.value - 1)
                print(f"| {name} {kind} | {ridge:g} | {' | '.join(map(interval, values))} | {ratio:+.1f} |", flush=True)


if __name__ == "__main__":
    main()
