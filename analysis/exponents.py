"""Power laws of a real kernel: capacity and source from its pool, and the learning curve that they and the theory give.

Over a range of training sizes without a ridge of its own, kappa falls as P^-alpha (capacity) and the squared bias as
kappa^(2 r) (source): eta_k = k^-alpha, c_k^2 = k^-(2 alpha r + 1), with which the excess risk falls as P^(-2 alpha
min(r, 1)). Real kernels are no power laws, so these are slopes over the stated range, from the debiased pool
(``PoolEstimator``). Intervals are from halves of the pool: a half is what the pool is to twice its size, so the scatter
between random halves is that of the pool (delete-half jackknife).

Letters: M pool points, P samples, E test risk.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.analysis.regression import squared_error
from ridgescope.theory import PoolEstimator, kernel_ridge, pool_estimator
from ridgescope.train.errors import UserError


@dataclass(frozen=True)
class Slope:
    """An exponent with its standard error and 90 % interval."""

    value: float
    se: float

    @property
    def low(self) -> float:
        return self.value - 1.645 * self.se

    @property
    def high(self) -> float:
        return self.value + 1.645 * self.se


@dataclass(frozen=True)
class Exponents:
    """``capacity`` alpha, ``source`` r, ``predicted`` d log E/d log P of the theory and ``measured`` of regression."""

    capacity: Slope
    source: Slope
    predicted: Slope
    measured: Slope
    sizes: tuple[int, ...]
    ridge: float


def learning_curve_exponents(
    gram: Float64[Tensor, "m m"],
    targets: Float64[Tensor, "rows c"],
    *,
    sizes: Sequence[int],
    ridge: float,
    num_draws: int = 16,
    halves: int = 12,
    seed: int = 0,
) -> Exponents:
    """Exponents over ``sizes`` at one ridge, in units of the kernel; slopes of straight lines in logarithms.

    The measured slope is that of each of ``num_draws`` nested chains of training sets, tested on the points that the
    largest leaves; its error is the scatter between chains (given the pool). One eigendecomposition of M, ``halves`` of
    M/2 points, and ``num_draws`` Cholesky factorisations for each size.

    Raises ``UserError`` for fewer than three sizes, or sizes beyond a half of the pool.
    """
    m = len(gram)
    if len(sizes) < 3 or min(sizes) < 5 or max(sizes) > m // 2:
        raise UserError(f"sizes={list(sizes)}: a slope needs at least three, between 5 and {m // 2}, half of the pool")
    generator = torch.Generator().manual_seed(seed)
    whole = _theory(pool_estimator(gram, targets), sizes, ridge)
    parts = []
    for _ in range(halves):
        index = torch.randperm(m, generator=generator)[: m // 2]
        parts.append(_theory(pool_estimator(gram[index][:, index], targets[index]), sizes, ridge))
    scatter = torch.tensor(parts, dtype=torch.float64).std(0).tolist()
    chains = []
    for _ in range(num_draws):
        order = torch.randperm(m, generator=generator)
        chains.append(_measured(gram, targets, order, sizes, ridge))
    slopes = torch.tensor(chains, dtype=torch.float64)
    measured = Slope(float(slopes.mean()), float(slopes.std()) / math.sqrt(num_draws))
    capacity, source, predicted = (Slope(value, se) for value, se in zip(whole, scatter, strict=True))
    return Exponents(capacity, source, predicted, measured, tuple(sizes), ridge)


def _theory(pool: PoolEstimator, sizes: Sequence[int], ridge: float) -> tuple[float, float, float]:
    """Capacity, source and slope of the predicted learning curve."""
    found = [pool.predict(size, ridge) for size in sizes]
    logs = [torch.tensor([math.log(v) for v in column], dtype=torch.float64) for column in (
        sizes, [p.df1 for p in found], [p.kappa2 for p in found], [p.bias for p in found], [p.test for p in found]
    )]  # fmt: skip
    size, df1, kappa, bias, test = logs
    # df1 = C kappa^(-1/alpha), whatever the ridge makes of P
    return -slope(df1, kappa), slope(kappa, bias) / 2, slope(size, test)


def _measured(gram: Tensor, targets: Tensor, order: Tensor, sizes: Sequence[int], ridge: float) -> float:
    rest = order[max(sizes) :]
    risks = []
    for size in sizes:
        train = order[:size]
        fit = kernel_ridge(gram[train][:, train], targets[train], ridge)
        risks.append(squared_error(gram[rest][:, train] @ fit.dual, targets[rest]))
    return slope(torch.tensor(sizes).double().log(), torch.tensor(risks, dtype=torch.float64).log())


def slope(x: Float64[Tensor, " n"], y: Float64[Tensor, " n"]) -> float:
    """Of the least-squares line of y against x."""
    centred = x - x.mean()
    return float((centred * y).sum() / centred.square().sum())
