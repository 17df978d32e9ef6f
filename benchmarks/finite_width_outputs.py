"""Ten outputs: the block law of the full C x C tangent kernel and of its trace form, against drawn kernels.

    python benchmarks/finite_width_outputs.py [--draws 24]

Digits, one-hot targets, one hidden ReLU layer. Prints a Markdown table: risk of both forms, simulated and predicted,
and the infinite-width risk, which is the same for both.
"""

import argparse
import math

import torch
from torch import Tensor

from ridgescope.analysis.finite_width import Form, block_kernel
from ridgescope.analysis.regression import full_kernel_ridge
from ridgescope.models import MLP
from ridgescope.theory import kernel_ridge
from ridgescope.theory.blocks import block_law
from ridgescope.train.data import prepare_data

SIZE, TESTS = 100, 300
FORMS: tuple[Form, ...] = ("full", "trace")


def drawn_risks(x: Tensor, y: Tensor, width: int, ridges: list[float], generator: torch.Generator) -> list[list[float]]:
    """Test risk of one network's full and trace kernel, for each ridge."""
    outputs, points = y.shape[1], len(x)
    z = x @ torch.randn(x.shape[1], width, generator=generator, dtype=torch.float64) / math.sqrt(x.shape[1])
    v = torch.randn(width, outputs, generator=generator, dtype=torch.float64)
    values, slopes, products = z.clamp_min(0), (z > 0).double(), x @ x[:SIZE].T / x.shape[1]
    shared = 2 / width * values @ values[:SIZE].T
    full = torch.zeros(outputs, points, outputs, SIZE, dtype=torch.float64)
    for a in range(outputs):
        for b in range(outputs):
            gradient = 2 / width * ((slopes * (v[:, a] * v[:, b])) @ slopes[:SIZE].T) * products
            full[a, :, b] = gradient + shared if a == b else gradient
    trace = full.diagonal(dim1=0, dim2=2).mean(-1)
    rows = []
    for ridge in ridges:
        gram = full[:, :SIZE].reshape(outputs * SIZE, outputs * SIZE)
        dual = full_kernel_ridge(gram, y[:SIZE], ridge).dual
        coupled = (full[:, SIZE:].reshape(-1, outputs * SIZE) @ dual).view(outputs, -1).T
        single = trace[SIZE:] @ kernel_ridge(trace[:SIZE], y[:SIZE], ridge).dual
        rows.append([float((y[SIZE:] - f).square().sum(1).mean()) for f in (coupled, single)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=24)
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 64, 256, 1024])
    parser.add_argument("--ridges", nargs="+", type=float, default=[1e-2, 1e-4])
    options = parser.parse_args()
    data = prepare_data("digits", train_size=SIZE, pool_size=1297, test_size=TESTS, num_draws=1, seed=7)
    index = data.splits.train[0]
    x = torch.cat([data.pool_inputs[index], data.test_inputs]).flatten(1)
    y = torch.cat([data.pool_targets[index], data.test_targets])
    network = MLP((x.shape[1],), y.shape[1], width=1, depth=1, generator=torch.Generator())
    kernels = {form: block_kernel(network, x[:SIZE], x[SIZE:], form=form) for form in FORMS}
    print("| N | lam | full: drawn | law | trace: drawn | law | infinite width |\n|---|---|---|---|---|---|---|")
    for width in options.widths:
        generator = torch.Generator().manual_seed(width)
        found = torch.tensor([drawn_risks(x, y, width, options.ridges, generator) for _ in range(options.draws)])
        mean, error = found.mean(0), found.std(0) / options.draws**0.5
        for i, ridge in enumerate(options.ridges):
            cells = []
            for k, form in enumerate(FORMS):
                law = block_law(kernels[form], y[:SIZE], y[SIZE:], width=width, ridge=ridge)
                deviation = float(law.test) / float(mean[i, k]) - 1
                cells.append(f"{mean[i, k]:.4f} ± {error[i, k]:.4f} | {float(law.test):.4f} ({100 * deviation:+.1f} %)")
            limit = block_law(kernels["full"], y[:SIZE], y[SIZE:], width=math.inf, ridge=ridge)
            print(f"| {width} | {ridge:g} | {' | '.join(cells)} | {float(limit.test):.4f} |", flush=True)


if __name__ == "__main__":
    main()
