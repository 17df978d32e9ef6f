"""What the block law costs at n points, and what warm starts save.

    python benchmarks/finite_width_cost.py [--points 2000] [--data fashion_mnist] [--threads 2]

Prints processor seconds of one iteration of the fixed point and of one product of the linear response, then seconds
and iterations of one (N, lam) from a cold start, then iterations along lam and along N with each prediction started
from the one before, beside the cold ones there.
"""

import argparse
import time

import torch

from ridgescope.analysis.finite_width import block_kernel
from ridgescope.models import MLP
from ridgescope.theory.blocks import BlockKernel, block_law
from ridgescope.theory.blocks.fixed_point import Linearised, mean_inverse, orders_of
from ridgescope.train.data import prepare_data

TESTS = 500


def parts(kernel: BlockKernel, shift: float, width: float) -> tuple[float, float]:
    """Processor seconds of one step of the fixed point, and of one product with ``1 - M Phi``."""
    began = time.process_time()
    base, families = shift * torch.eye(kernel.sizes[0], dtype=torch.float64), kernel.families
    zero = [torch.zeros(f.rank, f.rank, dtype=torch.float64) for f in families]
    inverse = mean_inverse(families, base, zero)
    orders = orders_of(families, inverse, torch.tensor(float(width)))
    iteration = time.process_time() - began
    linear = Linearised(families, inverse, orders, torch.tensor(float(width)))
    began = time.process_time()
    linear.propagate(linear.respond(orders))
    return iteration, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--warm-points", type=int, default=500)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--ridge", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = {"pool_size": max(options.points, options.warm_points), "test_size": TESTS, "num_draws": 1}
    data = prepare_data(options.data, train_size=options.points, target="parity", seed=7, **sizes)
    x, y = data.pool_inputs[data.splits.train[0]], data.pool_targets[data.splits.train[0]]
    network = MLP(data.in_shape, 1, width=1, depth=1, generator=torch.Generator())

    began = time.perf_counter()
    kernel = block_kernel(network, x, data.test_inputs)
    making = time.perf_counter() - began
    iteration, product = parts(kernel, options.points * options.ridge, options.width)
    print(
        f"{options.data}, n = {options.points}, rank {kernel.families[-1].rank}: one iteration {iteration:.1f} s, one "
        f"product {product:.1f} s of processor time",
        flush=True,
    )
    ready, used = time.perf_counter(), time.process_time()
    law = block_law(kernel, y, data.test_targets, width=options.width, ridge=options.ridge)
    done, used = time.perf_counter(), time.process_time() - used
    print(
        f"{options.data}, n = {options.points}, rank {kernel.families[-1].rank}, N = {options.width}, "
        f"lam = {options.ridge:g}, {options.threads} threads: kernel {making:.0f} s, law {done - ready:.0f} s "
        f"({used:.0f} s of processor time), {law.iterations} iterations, risk {float(law.test):.4f}",
        flush=True,
    )

    small = block_kernel(network, x[: options.warm_points])
    grids = {
        "lam": [(options.width, 10.0**-k) for k in range(2, 7)],
        "N": [(2**k, options.ridge) for k in range(4, 11)],
    }
    for name, grid in grids.items():
        start, counts = None, []
        for width, ridge in grid:
            settings = {"width": width, "ridge": ridge}
            cold = block_law(small, y[: options.warm_points], **settings)
            warm = block_law(small, y[: options.warm_points], start=start, **settings)
            start = warm.orders
            counts.append(f"{cold.iterations}/{warm.iterations}")
        print(f"n = {options.warm_points}, along {name}, iterations cold/warm: {' '.join(counts)}", flush=True)


if __name__ == "__main__":
    main()
