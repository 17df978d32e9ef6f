"""How fast is kappa on a large grid, and on a long spectrum, against a loop over scipy's brentq?

Run: ``python benchmarks/theory_kappa.py``. 10^4 (P, N, lam) on 10^4 eigenvalues by table, exact solver and
brentq in the same run (brentq on a subset, scaled); accuracy against the exact solver. Then one kappa on 10^7
eigenvalues, and the share of it that one bare pass over memory would take. Prints the load: a busy machine
distorts threads.
"""

import math
import os
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from ridgescope.theory import Features, KappaTable, Samples, power_law, renormalise

GRID, MODES, LONG, BRENTQ = 10_000, 10_000, 10_000_000, 100


def best_of(repeats: int, call: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Shortest of ``repeats`` wall-clock times, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return min(times), result


def brentq_kappa(eta: np.ndarray, p: float, n: float, lam: float) -> float:
    """The textbook solution: a bracketing root finder on the log equation, one pass per step."""

    def residual(t: float) -> float:
        kappa = math.exp(t)
        df1 = float(np.sum(eta / (eta + kappa)))
        if df1 >= min(p, n):
            return -1.0
        return math.log(kappa * (1 - df1 / p) * (1 - df1 / n) / lam)

    return math.exp(brentq(residual, math.log(lam), math.log(lam + eta.sum() * (1 / p + 1 / n)) + 1e-9, xtol=1e-13))


def grid_comparison(alpha: float) -> None:
    """Table, exact solver and brentq on the same random grid."""
    spectrum, generator = power_law(MODES, alpha), torch.Generator().manual_seed(0)
    p, n, u = (torch.rand(GRID, generator=generator, dtype=torch.float64) for _ in range(3))
    p, n, lam = 10 ** (0.5 + 3 * p), 10 ** (0.5 + 3 * n), 10 ** (-8 * u)
    sizes = torch.stack([p, n])
    upper = 2 + float(spectrum.trace) * float((1 / sizes).sum(0).max())
    table_time, fast = best_of(5, lambda: KappaTable(spectrum, low=1e-8, high=upper).solve(lam, sizes))
    exact_time, exact = best_of(1, lambda: renormalise(spectrum, Samples(p) @ Features(n), lam).kappa2)
    eta = spectrum.eta.numpy()
    start = time.perf_counter()
    slow = [brentq_kappa(eta, float(p[i]), float(n[i]), float(lam[i])) for i in range(BRENTQ)]
    brentq_time = (time.perf_counter() - start) * GRID / BRENTQ
    deviation = float((fast / exact - 1).abs().max())
    agreement = float((torch.tensor(slow, dtype=torch.float64) / exact[:BRENTQ] - 1).abs().max())
    print(
        f"k^-{alpha}: table {table_time:.3f} s, exact {exact_time:.2f} s, brentq {brentq_time:.2f} s; table "
        "is "
        f"{brentq_time / table_time:.0f}x brentq, worst deviation {deviation:.1e} (brentq itself "
        f"{agreement:.1e})"
    )


def long_spectrum(alpha: float) -> None:
    """One kappa on a spectrum far larger than the cache, next to one read of it."""
    spectrum = power_law(LONG, alpha)
    chain = Samples(1e4) @ Features(3e4)
    solve_time, _ = best_of(3, lambda: renormalise(spectrum, chain, 1e-6).kappa2)
    read_time, _ = best_of(3, lambda: spectrum.eta.sum())
    print(f"k^-{alpha}: one kappa with df1, df2 on {LONG:.0e} modes {solve_time:.2f} s, one read {read_time:.3f} s")


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    for alpha in (1.5, 1.2):
        grid_comparison(alpha)
        long_spectrum(alpha)


if __name__ == "__main__":
    main()
