"""What one pool reads at all its pool ridges: kappa, df1, bias, left-out risk, accuracy.

Letters: M pool points, C outputs, K pool ridges, s = df1/M.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory.pool import PoolEstimator


@dataclass(frozen=True)
class PoolReadings:
    """One pool at K pool ridges, rising: ``kappa``, ``df1``, ``d12`` = -d df1/d log kappa, ``bias`` = b + s2, ``risk``
    leave-one-out, ``gcv``, ``risk_se`` the relative standard error of ``risk`` over points, ``correct`` the share of
    points whose leave-one-out prediction has the right sign or largest output (NaN: no classes). All (K,)."""

    size: int
    pool_ridge: Float64[Tensor, " k"]
    kappa: Float64[Tensor, " k"]
    df1: Float64[Tensor, " k"]
    d12: Float64[Tensor, " k"]
    bias: Float64[Tensor, " k"]
    risk: Float64[Tensor, " k"]
    gcv: Float64[Tensor, " k"]
    risk_se: Float64[Tensor, " k"]
    correct: Float64[Tensor, " k"]

    @property
    def share(self) -> Float64[Tensor, " k"]:
        """s = df1/M."""
        return self.df1 / self.size


def ridge_grid(pool: PoolEstimator, per_decade: int = 8) -> Float64[Tensor, " k"]:
    """Pool ridges from far above the largest eigenvalue to the rounding error of the smallest."""
    top = float(pool.eigenvalues[0])
    return torch.logspace(math.log10(top) - 9, math.log10(top) + 1, 10 * per_decade + 1, dtype=torch.float64)


def pool_readings(pool: PoolEstimator, pool_ridges: Float64[Tensor, " k"]) -> PoolReadings:
    """All ridges at once: ``2 M^2 K (C + 1)`` operations, ``M K C`` numbers."""
    m, e, vectors, projections = pool.size, pool.eigenvalues, pool.vectors, pool.projections
    resolvent = 1 / (e[:, None] + pool_ridges)
    learned, missed = e[:, None] * resolvent, pool_ridges * resolvent
    d1, dh, o_m = learned.sum(0), (learned * missed).sum(0), missed.mean(0)
    d12 = dh * o_m / (o_m - dh / m)
    diagonal = (vectors.square() @ resolvent)[:, :, None]
    residual = (vectors @ (resolvent[:, :, None] * projections[:, None]).flatten(1)).view(m, len(pool_ridges), -1)
    residual = residual / diagonal  # left-out errors, (M, K, C)
    squared = residual.square().sum(2)
    risk = squared.mean(0)
    return PoolReadings(
        size=m,
        pool_ridge=pool_ridges,
        kappa=pool_ridges / o_m,
        df1=d1,
        d12=d12,
        bias=(o_m + d12 / m) * risk,
        risk=risk,
        gcv=(pool.target_power @ missed.square()) / o_m**2,
        risk_se=squared.std(0) / m**0.5 / risk,
        correct=_correct(residual, vectors @ projections),
    )


def _correct(residual: Tensor, targets: Tensor) -> Tensor:
    predicted = targets[:, None] - residual
    if not _classes(targets):
        return torch.full((residual.shape[1],), math.nan, dtype=torch.float64)
    if targets.shape[1] > 1:
        return (predicted.argmax(2) == targets.argmax(1)[:, None]).double().mean(0)
    return (predicted * targets[:, None] > 0)[:, :, 0].double().mean(0)


def _classes(targets: Tensor) -> bool:
    """Whether all points have one output above the others, which are equal, by as much; of one output, one size."""
    ordered = targets.sort(1).values
    gap = ordered[:, -1] - ordered[:, 0] if targets.shape[1] > 1 else targets[:, 0].abs()
    unlike = (ordered[:, -2:].amin(1) - ordered[:, 0]).amax()
    return float(torch.maximum(gap.std(), unlike)) <= 1e-6 * float(gap.mean())


def interpolate(x: Float64[Tensor, " n"], at: Float64[Tensor, " k"], values: Float64[Tensor, " k"]) -> Tensor:
    """Linear between the rising ``at``, constant outside."""
    if len(at) == 1:
        return values.expand(x.shape)
    right = torch.searchsorted(at, x).clamp(1, len(at) - 1)
    weight = ((x - at[right - 1]) / (at[right] - at[right - 1])).clamp(0, 1)
    return values[right - 1] + weight * (values[right] - values[right - 1])
