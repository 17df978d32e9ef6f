"""kappa from what each point adds to the others: the left-out variance of a training kernel.

Leaving point mu out, a Gaussian process with this kernel has variance P u_mu at it, and 1/R_mumu = lam + u_mu. On
Gaussian points all u_mu agree to O(P^-1/2) and any average of R_mumu gives kappa. On data whose points differ, with
x_mu = r_mu z_mu and mean r^2 = 1, u_mu = r_mu^2 kappa df1/P, and two numbers that were one come apart:

    modes       1/kappa = mean r^2/(lam + r^2 kappa df1/P)         which modes are learned, and with them the risk
    resolvent   1/kappa_res = mean 1/(lam + r^2 kappa df1/P)       what P/tr R measures, always smaller

Since P kappa mean(u) = kappa df1 the first can be measured too: kappa = P mean(u)/df1, with df1 = P (1 - lam mean R).
Derived in docs/theory/left_out.md. `left_out_risk` is the exact leave-one-out risk and the kappa in its ratio to the
training risk.

Symbols: P samples, K unnormalised Gram matrix, lam ridge, R = (K/P + lam)^-1, gamma = df2/P.
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from ridgescope.theory._checks import Number, as_float64, positive
from ridgescope.theory.pool import PoolEstimator


@dataclass(frozen=True)
class LeftOutEstimate:
    """``kappa`` by left-out variance in units of the kernel, its ratio to the resolvent's, and what explains it.

    ``excess_log`` = log(kappa/kappa_res) beyond what Gaussian points show; ``excess_se`` its standard error on Gaussian
    points, far below that of either kappa. ``unevenness`` is the coefficient of variation of u, ``gaussian`` the one
    of Gaussian points. ``repeated`` counts points with less than a hundredth of the mean left-out variance: copies, or
    nearly, of other points.
    """

    kappa: float
    excess_log: float
    excess_se: float
    unevenness: float
    gaussian: float
    repeated: int


def left_out_estimate(
    diagonal: Float[Tensor, " p"], *, ridge: Number, gamma: Number, kappa: Number | None = None
) -> LeftOutEstimate:
    """kappa = P mean(1/R_mumu - lam)/df1 from ``diagonal``, the P entries R_mumu of ``(K/P + lam)^-1``.

    ``gamma`` is df2/P (``resolvent_estimate``). ``kappa`` is the resolvent's estimate that the ratio is applied to, for
    instance the bias-corrected one; by default 1/mean R. The variance of log kappa is the resolvent's plus
    ``excess_se^2``. O(P).

    Raises ``ValueError`` for entries that are not positive, a negative ridge, gamma outside [0, 1), or no degrees of
    freedom (a ridge far above the kernel).
    """
    r = positive("diagonal", as_float64("diagonal", diagonal))
    if not (ridge >= 0 and math.isfinite(ridge)):
        raise ValueError(f"ridge={ridge:g} must be finite and >= 0; pass the lam of the loss")
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma={gamma:g} must lie in [0, 1); pass df2/num_samples")
    p, mean = len(r), float(r.mean())
    variance = (1 / r - ridge).clamp_min(0)
    learned = float((variance * r).mean())  # 1 - lam mean R = df1/P without its cancellation
    if not learned > 0:
        raise ValueError(f"ridge={ridge:g} leaves no degrees of freedom; pass a ridge below the kernel's eigenvalues")
    spread = float(variance.var()) / float(variance.mean()) ** 2
    # x^T A x of a Gaussian x varies by 2 tr A^2/(tr A)^2, here 2 df2/((1-gamma) df1^2)
    expected = 2 * gamma / ((1 - gamma) * p * learned**2)
    excess = math.log(float(variance.mean()) / learned * mean) - math.log1p(expected * learned)
    # the mean of P nearly independent squared deviations, whose own mean is ``expected``
    error = learned * expected * math.sqrt(2 / p)
    base = 1 / mean if kappa is None else float(kappa)
    return LeftOutEstimate(
        base * math.exp(excess),
        excess,
        error,
        math.sqrt(spread),
        math.sqrt(expected),
        int((variance < 0.01 * variance.mean()).sum()),
    )


@dataclass(frozen=True)
class LeftOutRisk:
    """The exact leave-one-out ``risk``, and ``kappa`` with the standard error of its logarithm."""

    risk: float
    kappa: float
    se_log: float


def left_out_risk(
    solution: Float[Tensor, "p c"],
    diagonal: Float[Tensor, " p"],
    *,
    kappa: Number,
    se_log: Number = 0.0,
    shorter: Number = 1.0,
) -> LeftOutRisk:
    """Leave-one-out from ``solution`` = R y (p, c) and ``diagonal``, the P entries R_mumu; risk summed over outputs.

    kappa = lam sqrt(E_loo/E_train)/shorter, where ``shorter`` = E_test(P - 1)/E_test(P), at the same ridge P lam added
    to the Gram matrix: a sample's error and its weight R_mumu covary, and by as much as one more sample lowers the risk
    (derived in docs/theory/left_out.md). ``kappa`` is the resolvent's estimate that the ratio to GCV is applied to, for
    instance the bias-corrected one, and ``se_log`` its error. O(P C).

    The ratio is of means over samples, so each sample has an influence on its logarithm: their scatter is the error.
    """
    power, weight = solution.square().sum(1), 1 / diagonal.square()
    risk, mean, trace = float((power * weight).mean()), float(power.mean()), float(diagonal.mean())
    influence = power * weight / risk - power / mean + 2 * (diagonal / trace - 1)
    own = 0.5 * float(influence.std()) / math.sqrt(len(power))
    ratio = math.sqrt(risk * trace**2 / mean)  # of E_loo to GCV
    return LeftOutRisk(risk, float(kappa) * ratio / float(shorter), math.hypot(float(se_log), own))


@dataclass(frozen=True)
class UnevenKappa:
    """Both kappas of training points that differ as the pool's do: of the modes, and of the resolvent's trace."""

    modes: float
    resolvent: float
    pool_ridge: float


def uneven_kappa(pool: PoolEstimator, *, num_samples: Number, ridge: Number) -> UnevenKappa:
    """The fixed point of the pool's spectrum for points that differ: ``PoolEstimator.predict`` without their likeness.

    At each pool ridge k the pool gives u_mu, hence r_mu^2 = u_mu/mean u and kappa = M mean(u)/d1; k is solved for
    1/kappa = mean r^2/(lam + r^2 kappa d1/P). With all r = 1 this is ``predict``'s kappa. O(M^2) a step, some 20 steps.

    Raises as ``PoolEstimator.predict``, and ``ValueError`` where no pool ridge solves the equation.
    """
    start = pool.predict(num_samples, ridge).pool_ridge
    squares, e, m = pool.vectors.square(), pool.eigenvalues, pool.size

    def at(log_k: float) -> tuple[float, float, Tensor]:
        k = math.exp(log_k)
        left = (1 / (squares @ (1 / (e + k))) - k).clamp_min(0)
        d1 = float((e / (e + k)).sum())
        return m * float(left.mean()) / d1, d1, left / left.mean()

    def excess(log_k: float) -> float:
        kappa, d1, r2 = at(log_k)
        return math.log(kappa * float((r2 / (ridge + r2 * kappa * d1 / num_samples)).mean()))

    low = high = math.log(start)
    for _ in range(60):
        if excess(low) < 0:
            break
        low -= 0.2
    for _ in range(60):
        if excess(high) > 0:
            break
        high += 0.2
    if not excess(low) <= 0 <= excess(high):
        raise ValueError(f"no pool ridge near {start:.1e} gives ridge={ridge:g} with {num_samples:g} of {m} points")
    log_k = float(brentq(excess, low, high, xtol=1e-10))
    kappa, d1, r2 = at(log_k)
    resolvent = 1 / float((1 / (ridge + r2 * kappa * d1 / num_samples)).mean())
    return UnevenKappa(kappa, resolvent, math.exp(log_k))
