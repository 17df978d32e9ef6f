"""How fast is the tangent kernel of torchvision's ResNet-18 on this device, and what would all of CIFAR-10 take?

    python benchmarks/kernel_resnet.py [--device cuda] [--minutes 10] [--start 64] [--outputs 1]

Random weights, random inputs of 32 x 32 x 3, one logit, float32 (tf32 off), BatchNorm in eval mode. Symmetric kernels
of n, 2n, 4n, ... inputs are timed until the next one would not fit the minutes. The times are fitted by `a n + b n^2`
(passes, and pairs of the upper half); 60,000 x 50,000 then takes `a (60,000 + 50,000 strips) + 2 b 60,000 x 50,000`,
where the columns pass once for each strip of rows whose factors fit the memory. Public reference: 43 minutes on four
A100 with 755 GB of memory.
"""

import argparse
import platform
import time

import numpy as np
import torch
from scipy.optimize import nnls
from torchvision.models import resnet18

from ridgescope.models import empirical_ntk

ROWS, COLUMNS = 60_000, 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--start", type=int, default=64, help="inputs of the smallest kernel")
    parser.add_argument("--outputs", type=int, default=1)
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{options.device} ({name}), torch {torch.__version__}, Python {platform.python_version()}")
    torch.manual_seed(0)
    model = resnet18(num_classes=options.outputs).eval().to(options.device)
    end, sizes, times = time.perf_counter() + 60 * options.minutes, [], []
    empirical_ntk(model, None, inputs(8, options.device))  # kernels of the device's library are loaded at first use
    n = options.start
    while not times or time.perf_counter() + 4 * times[-1] < end:
        sizes.append(n)
        times.append(seconds(model, inputs(n, options.device)))
        rows = (n * options.outputs) ** 2
        print(f"n = {n:6d}: {times[-1]:8.2f} s, {rows / times[-1]:,.0f} entries/s, memory {peak(options.device)}")
        n *= 2
    if len(sizes) > 1:
        per_input, per_pair = fit(sizes, times)
        for strips in (1, 10, 100):
            total = per_input * (ROWS + COLUMNS * strips) + 2 * per_pair * ROWS * COLUMNS
            print(f"{ROWS:,} x {COLUMNS:,}, {strips} strips: {total / 60:.0f} minutes")


def inputs(count: int, device: str) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count)).to(device)


def seconds(model: torch.nn.Module, x: torch.Tensor) -> float:
    start = time.perf_counter()
    float(empirical_ntk(model, None, x)[0, 0])  # reading a number waits for the device
    return time.perf_counter() - start


def fit(sizes: list[int], times: list[float]) -> tuple[float, float]:
    """``a`` and ``b`` of ``a n + b n^2``, by relative least squares, not negative."""
    n, t = np.array(sizes, float), np.array(times)
    (a, b), _ = nnls(np.stack([n, n * n], axis=1) / t[:, None], np.ones(len(t)))
    return float(a), float(b)


def peak(device: str) -> str:
    return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if device == "cuda" else "not measured"


if __name__ == "__main__":
    main()
