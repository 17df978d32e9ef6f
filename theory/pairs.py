"""Leaving out two points: what one point less would do to a pool's kappa and risk, without a universal law.

With ``A = (K + lam)^-1`` of M points, ``a = A y``, point i is missed by ``r_i = a_i/A_ii`` when it is left out; when j
is left out too,

    r_i|j = (a_i - A_ij r_j)/(A_ii - A_ij^2/A_jj),        A_ii|j = A_ii - A_ij^2/A_jj

(block inversion). Means over all pairs are the leave-one-out risk G and 1/kappa = n mean A_ii of M - 1 points at the
same ``lam`` = M k, so their differences from those of M points are the slopes of both in log M, for the data as they
are: heavy tails, near-duplicates, uneven leverages. Sums over i for one j give the jackknife error of G, in which
points that mislead their neighbours count.

Letters: M points, C outputs, K pool ridges k.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory.pool import PoolEstimator


@dataclass(frozen=True)
class PairReadings:
    """At each pool ridge, rising: d log kappa/d log M and d log G/d log M, both at fixed M k, and the jackknife's
    relative standard error of G. All (K,)."""

    pool_ridge: Float64[Tensor, " k"]
    kappa_slope: Float64[Tensor, " k"]
    risk_slope: Float64[Tensor, " k"]
    risk_se: Float64[Tensor, " k"]


def pair_readings(pool: PoolEstimator, pool_ridges: Float64[Tensor, " k"]) -> PairReadings:
    """All pairs of the pool at every ridge: ``2 M^2 (M + C)`` operations for each, four M x M matrices."""
    rows = [_pairs(pool, k) for k in pool_ridges.tolist()]
    columns = torch.tensor(rows, dtype=torch.float64).T if rows else torch.empty(3, 0, dtype=torch.float64)
    return PairReadings(pool_ridges, *columns)


def _pairs(pool: PoolEstimator, k: float) -> tuple[float, float, float]:
    m, weights = pool.size, 1 / (pool.eigenvalues + k)
    resolvent = (pool.vectors * weights) @ pool.vectors.T  # M A
    diagonal = resolvent.diagonal().clone()
    products = pool.vectors @ (pool.projections * weights[:, None])
    left_out = products / diagonal[:, None]
    risks = left_out.square().sum(1)
    squared = resolvent.square()
    remaining = diagonal[:, None] - squared / diagonal  # M A_ii|j in row i, column j
    remaining.fill_diagonal_(math.inf)
    numerators = resolvent.mul_(products @ left_out.T).mul_(-2).add_(squared.mul_(risks))
    numerators.add_(products.square().sum(1)[:, None])
    pairs = numerators.div_(remaining).div_(remaining).sum(0)  # of |r_i|j|^2 over i, for each j
    remaining.fill_diagonal_(0)
    mean = float(remaining.sum()) / (m * (m - 1))
    kappa_slope = m * math.log((m - 1) / m * mean / float(diagonal.mean()))
    risk = float(risks.mean())
    risk_slope = m * math.log(risk * m * (m - 1) / float(pairs.sum()))
    return kappa_slope, risk_slope, float(pairs.std()) / m**0.5 / risk
