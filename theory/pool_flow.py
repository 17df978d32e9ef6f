"""Gradient flow on training sets drawn from a pool: the deterministic equivalent, with the pool's own residuals.

Flow for a time t leaves the residual ``sum_z a(z) (y - f_z)`` of ridge predictors f_z at ridge -z, with weights a(z) =
exp(-tz)/z dz/(2 pi i) on a contour around 0 and the spectrum, which add up to one. So its risk is the double sum of the
cross risks of two ridges. As for one ridge (:mod:`ridgescope.theory.pool`) these are read off the pool: the pool ridge
k(z) solves k (1 - d1/P) + z (1 - d1/M) = 0, and

    cross(z, z') = L(k, k') (1 - d2/M)/(1 - d2/P),     d2 = (kappa' d1' - kappa d1)/(kappa' - kappa)

with kappa = k/(1 - d1/M) and L(k, k') = mean over points of the product of the two leave-one-out residuals; at k = k'
the terms are those of a single ridge. Derived in docs/theory/gradient_flow.md.

Symbols: M pool points, P samples, C outputs, Z contour nodes; e_i eigenvalues of K/M, l = e/(e+k), d1 = sum l.
"""

import math

import torch
from jaxtyping import Complex
from torch import Tensor

from ridgescope.theory._checks import Number
from ridgescope.theory.gradient_flow import continued_kappa, contour
from ridgescope.theory.pool import PoolEstimator


def pool_flow_risks(pool: PoolEstimator, *, num_samples: Number, time: Number) -> tuple[float, float]:
    """Test and train risk of gradient flow stopped at ``time`` on ``num_samples`` points of the pool.

    Risks are summed over outputs; the test risk holds for points that were not trained on. For late times it is
    ``PoolEstimator.predict`` without a ridge. Cost about 4 M^2 Z (C + 1) + 16 Z^2 M C operations with Z = 10 sqrt(t
    e_max) nodes, at least 100 and at most 3000.

    Raises ``ValueError`` for ``num_samples`` not below the pool's size (at P = M no point is left), a time that is
    negative or needs too many nodes.
    """
    m, e = pool.size, pool.eigenvalues
    if not 0 < num_samples < m:
        raise ValueError(f"num_samples={num_samples:g} must lie in (0, {m}), below the pool's size; enlarge the pool")
    if not (time >= 0 and math.isfinite(time)):
        raise ValueError(f"time={time:g} must be >= 0 and finite; use predict(ridge=0) for the end of the flow")
    power = float(pool.target_power.sum())
    if time == 0:
        return power, power
    z, dz = contour(_edge(e, num_samples), time)
    k = continued_kappa(e, torch.ones_like(e), num_samples, z, m)
    decay = torch.exp(-time * z) * dz / (2j * math.pi)
    density = (pool.target_power / (e + k[:, None])).sum(1)
    train = 2 * float((-decay * torch.exp(-time * z) * density).sum().real)
    return _test(pool, num_samples, k, decay / z), train


def _edge(e: Tensor, num_samples: Number) -> float:
    """An upper bound of the largest eigenvalue of a training set's K/P: x (1 + sum e/(x - e)/P) for any x > e_max."""
    x = float(e[0]) * (1 + torch.logspace(-3, 2, 200, dtype=torch.float64))
    return float((x * (1 + (e / (x[:, None] - e)).sum(1) / num_samples)).min())


def _test(pool: PoolEstimator, p: Number, k: Complex[Tensor, " z"], weight: Complex[Tensor, " z"]) -> float:
    """The double sum; the lower half of the contour is the mirror image of the upper, k (Z,)."""
    m, e = pool.size, pool.eigenvalues
    inverse = 1 / (e + k[:, None])
    learned = e * inverse
    missed = k[:, None] * inverse
    d1, o = learned.sum(1), missed.sum(1) / m  # o = 1 - d1/M without cancellation
    dh = (learned * missed).sum(1)
    own = d1 - dh * o / (o - dh / m)  # d2 of a node with itself
    kappa = k / o
    residual = _left_out(pool, inverse)
    total = 0.0
    for mirrored in (False, True):
        other = [x.conj() if mirrored else x for x in (kappa, d1, weight, residual)]
        gap = other[0] - kappa[:, None]
        d2 = (other[0] * other[1] - (kappa * d1)[:, None]) / torch.where(gap == 0, 1.0, gap)
        if not mirrored:
            d2.diagonal().copy_(own)
        cross = residual @ other[3].T / m * (1 - d2 / m) / (1 - d2 / p)
        total += 2 * float((weight @ cross @ other[2]).real)
    return total


def _left_out(pool: PoolEstimator, inverse: Complex[Tensor, "z m"]) -> Complex[Tensor, "z mc"]:
    """Leave-one-out residuals of the whole pool at every node."""
    vectors = pool.vectors
    squared = vectors.square()
    residual, diagonal = (
        torch.complex(*(parts(part) for part in (inverse.real, inverse.imag)))
        for parts in (
            lambda part: torch.stack([vectors @ (pool.projections * row[:, None]) for row in part]),
            lambda part: part @ squared.T,
        )
    )
    return (residual / diagonal[:, :, None]).flatten(1)
