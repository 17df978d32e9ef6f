"""The best ridge, and learning curves tuned to it.

Symbols: E(lam) test risk of a chain, lam* its minimiser. Stationarity dE/dlog lam = 0 comes from the implicit
gradient of the solver, so lam* is accurate to rounding rather than to its square root.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ridgescope.theory.renormalisation import Samples, Source
from ridgescope.theory.risks import risks
from ridgescope.theory.spectra import Spectrum, Target


def optimal_ridge(spectrum: Spectrum, target: Target, chain: Source) -> float:
    """The ridge lam* >= 0 of least test risk for one chain of scalar sizes; 0 where the risk only grows with
    lam.

    Global over 14 decades below and 4 above the trace (61 points), then bisection on dE/dlog lam between the
    neighbours of the best. The risk may be flat: lam* is then loose, the risk is not. Negative ridges are
    outside this theory. Cost: about 100 solves. ``ValueError`` for a grid of sizes or a target without power.

    >>> flat = Spectrum(torch.ones(40, dtype=torch.float64))
    >>> best = optimal_ridge(flat, Target(torch.full((40,), 0.05, dtype=torch.float64), 0.5), Samples(30))
    >>> round(best, 12) == round(0.5 * 40 / (30 * 2.0), 12)
    True
    """
    if float(target.c2.sum()) == 0:
        raise ValueError("target power is 0 everywhere: the best ridge is infinite; pass a target with power")
    trace = float(spectrum.trace.detach())
    grid = torch.cat([torch.zeros(1, dtype=torch.float64), trace * torch.logspace(-14, 4, 60, dtype=torch.float64)])
    with torch.no_grad():
        curve = risks(spectrum, target, chain, grid).test
    if curve.shape != grid.shape:
        raise ValueError(f"optimal_ridge takes one chain, got a grid {tuple(curve.shape[:-1])}; loop over it")
    best = int(curve.argmin())
    if best == 0 or (best == 1 and float(curve[1]) >= float(curve[0])):
        return 0.0
    low, high = math.log(float(grid[max(best - 1, 1)])), math.log(float(grid[min(best + 1, 60)]))
    while high - low > 1e-15 * max(1.0, abs(low)):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if _slope(spectrum, target, chain, middle) > 0 else (middle, high)
    return math.exp((low + high) / 2)


def _slope(spectrum: Spectrum, target: Target, chain: Source, log_ridge: float) -> float:
    x = torch.tensor(log_ridge, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(risks(spectrum, target, chain, x.exp()).test, x)
    return float(slope)


def tuned_learning_curve(
    spectrum: Spectrum, target: Target, num_samples: Float[Tensor, " points"]
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """Test risk at the best ridge, and that ridge, for each number of samples (kernel limit).

    For a fixed ridge no helper is needed: ``risks`` broadcasts over ``Samples(tensor)`` and ``ridge``.
    """
    best = [optimal_ridge(spectrum, target, Samples(float(p))) for p in num_samples]
    ridges = torch.tensor(best, dtype=torch.float64)
    return risks(spectrum, target, Samples(num_samples), ridges).test, ridges
