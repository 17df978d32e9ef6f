"""Does ridge theory predict the risk of infinite-width kernels on images, down to a tiny ridge?

    python benchmarks/theory_kernel.py [--data digits fashion_mnist] [--quick] > table.md

For each data set (inputs centred and of unit norm, one-hot targets), kernel (ReLU NTK of a three-layer MLP and of a
two-layer CNN with a flattened readout, divided by its mean diagonal), P and ridge: the pool estimator's prediction
against kernel ridge regression on random training sets from the pool, tested on all other points of the pool and, for
Fashion-MNIST, 1000 fresh ones. Training sets until the standard error is about 0.5 %. The pool is as large as the data
or the memory allow: 1797 digits, 4000 images of Fashion-MNIST. 15 minutes on one core, 4 with ``--quick``.
"""

import argparse
import platform
import sys

import numpy as np
import torch

from ridgescope.analysis.regression import squared_error
from ridgescope.models import CNN, MLP, Network, infinite_ntk
from ridgescope.theory import pool_estimator
from ridgescope.train.data import prepare_data

RIDGES = (1e-2, 1e-3, 1e-4, 1e-6)
SIZES = {"digits": (100, 200, 400, 800), "fashion_mnist": (100, 200, 400, 800, 1600)}
POOL = {"digits": (1796, 1), "fashion_mnist": (4000, 1000)}


def architecture(kind: str, shape: tuple[int, ...]) -> Network:
    generator = torch.Generator().manual_seed(0)
    if kind == "mlp":
        return MLP(shape, 10, width=8, depth=3, generator=generator)
    strides = (1, 2) if shape[-1] == 8 else (2, 2)
    return CNN(shape, 10, width=8, depth=2, strides=strides, generator=generator)


def measured(
    gram: torch.Tensor, fresh: torch.Tensor, targets: torch.Tensor, fresh_targets: torch.Tensor, size: int, draws: int
) -> torch.Tensor:
    """Held-out risks (draws, ridges) of kernel ridge regression, one eigendecomposition for each training set."""
    generator = torch.Generator().manual_seed(size)
    risks = torch.zeros(draws, len(RIDGES), dtype=torch.float64)
    for draw in range(draws):
        order = torch.randperm(len(gram), generator=generator)
        train, rest = order[:size], order[size:]
        values, vectors = torch.linalg.eigh(gram[train][:, train] / size)
        seen = vectors.T @ targets[train]
        cross = torch.cat([gram[rest][:, train], fresh[:, train]]) @ vectors / size
        labels = torch.cat([targets[rest], fresh_targets])
        for i, ridge in enumerate(RIDGES):
            risks[draw, i] = squared_error(cross @ (seen / (values.clamp_min(0) + ridge)[:, None]), labels)
    return risks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--kernels", nargs="+", default=["mlp", "cnn"], choices=["mlp", "cnn"])
    parser.add_argument("--quick", action="store_true", help="a quarter of the training sets")
    options = parser.parse_args()
    print("python benchmarks/theory_kernel.py", *sys.argv[1:])
    print(f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}\n")
    print("| data | kernel | P | ridge | measured | s.e. % | predicted | deviation % |")
    print("|---|---|---|---|---|---|---|---|")
    deviations: list[float] = []
    for name in options.data:
        pool_size, test_size = POOL[name]
        data = prepare_data(name, train_size=1, pool_size=pool_size, test_size=test_size, num_draws=1, download=False)
        for kind in options.kernels:
            network = architecture(kind, data.in_shape)
            gram = infinite_ntk(network, data.pool_inputs).ntk
            fresh = infinite_ntk(network, data.test_inputs, data.pool_inputs).ntk
            unit = gram.diagonal().mean()
            gram, fresh = gram / unit, fresh / unit
            estimator = pool_estimator(gram, data.pool_targets)
            for size in SIZES[name]:
                draws = max(4, min(100, 16000 // size) // (4 if options.quick else 1))
                risks = measured(gram, fresh, data.pool_targets, data.test_targets, size, draws)
                for i, ridge in enumerate(RIDGES):
                    predicted, mean = estimator.predict(size, ridge).test, float(risks[:, i].mean())
                    error = float(risks[:, i].std()) / draws**0.5
                    deviations.append(100 * (mean / predicted - 1))
                    cells = (name, kind, size, f"{ridge:g}", f"{mean:.4f}", f"{100 * error / mean:.1f}")
                    print(
                        "|", *(f"{cell} |" for cell in cells), f"{predicted:.4f} | {deviations[-1]:+.1f} |", flush=True
                    )
    found = np.array(deviations)
    worst = found[np.abs(found).argmax()]
    print(f"\n{len(found)} cells: rms {np.sqrt((found**2).mean()):.2f} %, mean {found.mean():+.2f} %", end="")
    print(f", worst {worst:+.1f} %")


if __name__ == "__main__":
    main()
