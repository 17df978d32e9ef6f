"""kappa from the shrinkage of a pool's own modes, on the points that a training set left out.

The population's modes are not known for a real kernel, the pool's are. Training on P of the M points acts on them
like a pool ridge k, with lam = k (1-d1/P)/(1-d1/M), and on the M - P points left out

    mean phi_i (y - f) = c_i kappa/(e_i + k),      kappa = k/(1 - d1(k)/M):

residuals of the whole pool are those of ridge k, those of the training points are the fraction P lam/(M k) of them,
and what is left belongs to the others. A mode far below k overshoots (1 - kappa/k < 0): the points left out know that
the training points have used it. Derived in docs/theory/modes.md.

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
    of the pool ridge. Outputs are weighted alike with the variance of their own residuals, and the errors' correlations
    over outputs, modes that share points, and the common factor of the training set (docs/theory/modes.md) enter
    ``se_log``. O(T C num_modes).

    Raises ``ValueError`` where no mode bounds kappa, ``RuntimeError`` where the iteration does not settle.
    """
    m, e = pool.size, pool.eigenvalues
    phi = math.sqrt(m) * pool.vectors[left_out][:, :num_modes]
    c = (pool.projections[:num_modes] / math.sqrt(m)).flatten()
    t, outputs = labels.shape
    first, second = phi.T @ predictions / t, phi.T @ labels / t
    moments = [_spread(phi, u, w) for u, w in ((predictions, predictions), (predictions, labels), (labels, labels))]
    residual = predictions - labels
    errors = residual.T @ residual / t  # (c, c): E_ab
    per_output = errors.diagonal().repeat(num_modes)

    def residuals(learned: Tensor) -> tuple[Tensor, Tensor]:
        each = learned.view(num_modes, outputs)
        over_points = moments[0] - 2 * each * moments[1] + each.square() * moments[2]
        variance = learned.square() * per_output / num_samples + over_points.clamp_min(0).flatten() / t
        return (first - each * second).flatten(), variance

    def shrinkage(log_k: float) -> tuple[Tensor, Tensor]:
        missed, slope = _missed(e, m, math.exp(log_k))
        one, other = 1 - missed[:num_modes], -slope[:num_modes]
        return one.repeat_interleave(outputs), other.repeat_interleave(outputs)

    log_k, information = descend(residuals, c, shrinkage, math.log(start))
    learned, slope = shrinkage(log_k)
    weight = (slope * c / residuals(learned)[1] / information).view(num_modes, outputs)
    each = learned.view(num_modes, outputs)
    data = float(((weight * each) @ errors * weight * each).sum()) / num_samples
    mixed = weight.T @ (slope * c).view(num_modes, outputs)  # trace one; the training set's common factor
    floor = float((mixed * mixed.T).sum()) / (num_samples * (1 - gamma))
    combined = (predictions * (phi @ weight) - labels * (phi @ (weight * each))).sum(1)
    se = math.sqrt(data + floor + float(combined.var()) / t)
    found = with_profile(residuals, c, shrinkage, log_k, se, floor)
    return _from_pool_ridge(found, e, m)


def _spread(phi: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """Covariance over points of phi_i u_a and phi_i w_a, (modes, c)."""
    t = len(phi)
    mean = (phi.T @ u / t) * (phi.T @ w / t)
    return (phi.square().T @ (u * w) / t - mean) * (t / (t - 1))


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
