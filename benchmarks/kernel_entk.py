"""How much faster is `empirical_ntk` than contracting torch.func Jacobians, and how close to the GEMM peak?

    python benchmarks/kernel_entk.py [--rounds 5] [--threads 1] [--dtype float64] [--config NAME ...]

Both compute the same kernel of the same network on the same inputs, in interleaved rounds of one process; times are
medians of processor time, summed over threads. "share" is the multiply-adds that the layer structure needs, counted
for a full square and halved, over the time of a large matrix product with as many: it falls short of 1 by epilogues,
passes through the network and small products. On shared cores use one thread: OpenMP's spinning threads slow each
other down tenfold.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from ridgescope.models import CNN, MLP, empirical_ntk

# name -> (network, input shape, width, depth and further options, outputs, inputs, form)
CONFIGS: dict[str, tuple[Callable[..., MLP | CNN], tuple[int, ...], dict[str, object], int, int, str]] = {
    "mlp-w128-c1": (MLP, (784,), {"width": 128, "depth": 3}, 1, 500, "full"),
    "mlp-w512-c1": (MLP, (784,), {"width": 512, "depth": 3}, 1, 200, "full"),
    "mlp-w512-c10-trace": (MLP, (784,), {"width": 512, "depth": 3}, 10, 40, "trace"),
    "mlp-w512-c10": (MLP, (784,), {"width": 512, "depth": 3}, 10, 40, "full"),
    "digits-mlp-w512-c10": (MLP, (64,), {"width": 512, "depth": 2}, 10, 100, "full"),
    "digits-cnn-w64-c10": (CNN, (1, 8, 8), {"width": 64, "depth": 2, "strides": (1, 2)}, 10, 200, "full"),
    "digits-cnn-w64-c10-trace": (CNN, (1, 8, 8), {"width": 64, "depth": 2, "strides": (1, 2)}, 10, 200, "trace"),
    "fashion-cnn-w4-c1": (CNN, (1, 28, 28), {"width": 4, "depth": 2, "strides": 2}, 1, 250, "full"),
    "fashion-cnn-w16-c1": (CNN, (1, 28, 28), {"width": 16, "depth": 2, "strides": 2}, 1, 250, "full"),
    "cnn-w64-c1-pool": (CNN, (1, 28, 28), {"width": 64, "depth": 3, "readout": "pool"}, 1, 60, "full"),
    "cnn-w16-c1-pool": (CNN, (1, 28, 28), {"width": 16, "depth": 3, "readout": "pool"}, 1, 100, "full"),
    "fashion-cnn-w64-c1": (CNN, (1, 28, 28), {"width": 64, "depth": 2, "strides": 2}, 1, 200, "full"),
    "fashion-cnn-w64-c10": (CNN, (1, 28, 28), {"width": 64, "depth": 2, "strides": 2}, 10, 100, "full"),
}


def torch_func_ntk(model: nn.Module, x: Tensor, form: str) -> Tensor:
    """The kernel as the torch.func tutorial computes it: per-sample Jacobians, contracted parameter by parameter."""
    params = {name: value.detach() for name, value in model.named_parameters()}
    jacobians = vmap(jacrev(lambda p, one: functional_call(model, p, (one[None],))[0]), (None, 0))(params, x)
    parts = [jacobian.flatten(2) for jacobian in jacobians.values()]
    if form == "trace":
        return sum(part.flatten(1) @ part.flatten(1).T for part in parts) / parts[0].shape[1]
    rows = [part.transpose(0, 1).flatten(0, 1) for part in parts]
    return sum(part @ part.T for part in rows)


def seconds(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Processor time, which a busy machine disturbs less than the clock; with one thread they should agree."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def gemm_rate(dtype: torch.dtype) -> float:
    """Multiply-adds per second of a 2000 x 2000 product, the best of five."""
    a = torch.randn(2000, 2000, dtype=dtype)
    return 2000**3 / min(seconds(lambda: a @ a)[0] for _ in range(5))


def multiply_adds(model: CNN | MLP, num_inputs: int, form: str) -> float:
    """Products that pairs of inputs need, half of the square: the least over the ways of each layer."""
    c = model.num_outputs
    outer = c if form == "trace" else c * c
    pixels = [h * w for h, w in model.pixels] if isinstance(model, CNN) else [1] * model.depth
    per_pair = float(model.readout.in_features)
    for layer, s in zip(model.layers, pixels, strict=False):
        o, k = layer.weight.shape[0], layer.fan_in
        ways = [outer * o * k, s * s * k + outer * s * s * o]
        if form == "full":
            ways.append(s * s * k + s * s * c * o + c * c * s * o)
        per_pair += min(ways)
    return per_pair * num_inputs**2 / 2


def run(name: str, rounds: int, dtype: torch.dtype) -> None:
    network, shape, options, outputs, num_inputs, form = CONFIGS[name]
    generator = torch.Generator().manual_seed(0)
    model = network(shape, outputs, activation="erf", generator=generator, dtype=dtype, **options)
    x = torch.randn(num_inputs, *shape, generator=generator, dtype=torch.float64).to(dtype)
    ours, theirs, rates = [], [], []
    for _ in range(rounds):
        rates.append(gemm_rate(dtype))
        time_ours, kernel = seconds(lambda: empirical_ntk(model, None, x, form=form))
        time_theirs, oracle = seconds(lambda: torch_func_ntk(model, x, form))
        ours.append(time_ours)
        theirs.append(time_theirs)
    error = float((kernel - oracle).norm() / oracle.norm())
    mine, other = statistics.median(ours), statistics.median(theirs)
    share = multiply_adds(model, num_inputs, form) / statistics.median(rates) / mine
    print(f"{name:26s} n={num_inputs:<4d} ours {mine:8.3f} s  torch.func {other:8.3f} s  "
          f"ratio {other / mine:6.1f}  share {share:4.0%}  difference {error:.0e}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--config", nargs="*", choices=CONFIGS, default=list(CONFIGS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.dtype}, load {os.getloadavg()[0]:.1f}, "
          f"GEMM {2e-9 * gemm_rate(dtype):.0f} GFLOP/s, median of {arguments.rounds}")  # fmt: skip
    for name in arguments.config:
        run(name, arguments.rounds, dtype)


if __name__ == "__main__":
    main()
