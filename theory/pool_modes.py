"""kappa from the shrinkage of a pool's own modes, on the points that a training set left out.

The population's modes are not known for a real kernel, the pool's are. Training on P of the M points acts on them
like a pool ridge k, with lam = k (1-d1/P)/(1-d1/M), and on the T = M - P points left out

    g_i = mean phi_i (y - f) = c_i kappa/(e_i + k) + noise,      kappa = k/(1 - d1(k)/M)

residuals of the whole pool are those of ridge k, those of the training points are the fraction P lam/(M k) of them,
and what is left belongs to the others. A mode far below k overshoots (1 - kappa/k < 0): the points left out know that
the training points have used it. phi_i, c_i and e_i are exact, for they are of the pool: the only noise is which of its
points were drawn. Adding x to the training set moves g_i by -(M/T - kappa/(e_i+k)) phi_i(x) (y - f)(x)/P, hence with
U_i = kappa/(e_i+k), a_i = M/T - U_i and E the risk on the points left out

    Cov(g_i, g_j) = (1 - P/M) a_i a_j [E delta_ij + U_i c_i U_j c_j/(1-gamma)]/P

Derived in docs/theory/modes.md.

Symbols: M pool points, P samples, T = M - P points left out, C outputs; e_i, v_i eigenpairs of K/M, phi_i = sqrt(M)
v_i, c_ia = mean over the pool of phi_i y_a; d1 = sum e/(e+k), dh = sum e k/(e+k)^2, gamma = df2/P.
"""

import math
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from ridgescope.theory._checks import Number
from ridgescope.theory.modes import ModeEstimate, descend, with_profile
from ridgescope.theory.pool import PoolEstimator


def kappa_from_pool_modes(
    predictions: Float[Tensor, "t c"],
    labels: Float[Tensor, "t c"],
    left_out: Tensor,
    pool: PoolEstimator,
    *,
    num_modes: int,
    num_samples: Number,
    gamma: Number,
    start: Number,
) -> ModeEstimate:
    """kappa from a predictor's outputs on the pool's points ``left_out`` (t,), all those that it was not trained on.

    Uses the ``num_modes`` leading modes: take those down to about a tenth of kappa, at most M/2. ``start`` is a guess
    of the pool ridge. Outputs are weighted alike with the variance of their own residuals; the errors' correlations
    over outputs and the common factor of the training set enter ``se_log``. O(T C num_modes).

    Raises ``ValueError`` where no mode bounds kappa, ``RuntimeError`` where the iteration does not settle.
    """
    m, e = pool.size, pool.eigenvalues
    t, outputs = labels.shape
    phi = math.sqrt(m) * pool.vectors[left_out][:, :num_modes]
    target = pool.projections[:num_modes] / math.sqrt(m)
    c = target.flatten()
    residual = labels - predictions
    left = phi.T @ residual / t  # g
    errors = residual.T @ residual / t  # (c, c): E_ab
    drawn = t / (m * num_samples)  # (1 - P/M)/P

    def moved(learned: Tensor) -> Tensor:
        """a: how far one more sample moves g, per unit of its mode and error."""
        return m / t - 1 + learned.view(num_modes, outputs)

    def residuals(learned: Tensor) -> tuple[Tensor, Tensor]:
        missed = 1 - learned.view(num_modes, outputs)
        variance = drawn * moved(learned).square() * errors.diagonal()
        return (missed * target - left).flatten(), variance.flatten()

    def shrinkage(log_k: float) -> tuple[Tensor, Tensor]:
        missed, slope = _missed(e, m, math.exp(log_k))
        one, other = 1 - missed[:num_modes], -slope[:num_modes]
        return one.repeat_interleave(outputs), other.repeat_interleave(outputs)

    log_k, information = descend(residuals, c, shrinkage, math.log(start))
    learned, slope = shrinkage(log_k)
    weight = (slope * c / residuals(learned)[1] / information).view(num_modes, outputs) * moved(learned)
    data = drawn * float(((weight @ errors) * weight).sum())
    mixed = weight.T @ ((1 - learned) * c).view(num_modes, outputs)  # the training set's common factor
    floor = drawn * float((mixed * mixed.T).sum()) / (1 - gamma)
    found = with_profile(residuals, c, shrinkage, log_k, math.sqrt(data + floor), floor)
    return _from_pool_ridge(found, e, m)


def _missed(e: Tensor, m: int, k: float) -> tuple[Tensor, Tensor]:
    """kappa/(e_i + k) and its derivative in log k."""
    share, rate = _renormalised(e, m, k)
    missed = k * share / (e + k)
    return missed, missed * (rate - k / (e + k))


def _renormalised(e: Tensor, m: int, k: float) -> tuple[float, float]:
    """kappa/k = 1/(1 - d1/M), and d log kappa/d log k = (M-d1)/(M-d1-dh) inverted."""
    missed = k / (e + k)
    left, dh = float(missed.sum()), float((missed * (1 - missed)).sum())
    return m / left, 1 - dh / left


def _from_pool_ridge(found: ModeEstimate, e: Tensor, m: int) -> ModeEstimate:
    """The same estimate, its pool ridges turned into kappas."""

    def kappa(k: float) -> float:
        return k * _renormalised(e, m, k)[0] if 0 < k < math.inf else k

    rate = _renormalised(e, m, found.kappa)[1]
    return replace(
        found, kappa=kappa(found.kappa), se_log=found.se_log * rate, low=kappa(found.low), high=kappa(found.high)
    )


def leading_modes(pool: PoolEstimator, kappa: Number) -> int:
    """How many modes to use: down to a tenth of ``kappa``, between 1 and half the pool's size."""
    return max(1, min(int((pool.eigenvalues > kappa / 10).sum()), pool.size // 2))
