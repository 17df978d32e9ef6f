"""kappa measured from the shrinkage of modes: v_k is about L_k(kappa) c_k.

Symbols: v_k measured coefficients, c_k target, eta_k eigenvalues, P samples, E_test risk (with noise), gamma
= df2/P, L = eta/(eta+kappa), U = 1-L, J_k = d(L_k c_k)/d log kappa = -L_k U_k c_k, V_k variance of v_k.
Weighted least squares in log kappa. The modes covary along J, which leaves the estimator alone but adds the
floor 1/(P (1-gamma)) to its variance: without it the error is understated by up to sqrt 2. Derived in
docs/theory/modes.md. Shapes: modes (D), held-out points (T).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ridgescope.theory._checks import Number, as_float64, positive, same_length


@dataclass(frozen=True)
class ModeEstimate:
    """kappa, the standard error of log kappa, and the one-sigma interval of kappa from the profile.

    Where ``se_log`` exceeds 0.5 quote the interval: the point value is then far from Gaussian. An end is 0 or
    inf where the data do not bound kappa on that side.
    """

    kappa: float
    se_log: float
    low: float
    high: float


Residuals = Callable[[Tensor], tuple[Tensor, Tensor]]  # learned -> residuals of the modes and their variances
Shrinkage = Callable[[float], tuple[Tensor, Tensor]]  # x -> learned and its derivative in x, mode by mode


def shrinkage_of(eta: Float[Tensor, " modes"]) -> Shrinkage:
    """L = eta/(eta+kappa) and -L U as a function of log kappa."""

    def at(log_kappa: float) -> tuple[Tensor, Tensor]:
        learned = eta / (eta + math.exp(log_kappa))
        return learned, -learned * (1 - learned)

    return at


def kappa_from_modes(
    coefficients: Float[Tensor, " modes"],
    target: Float[Tensor, " modes"],
    eigenvalues: Float[Tensor, " modes"],
    *,
    num_samples: Number,
    test_risk: Number,
    gamma: Number,
    measurement_variance: Float[Tensor, " modes"] | None = None,
    start: Number | None = None,
) -> ModeEstimate:
    """kappa from measured coefficients v (signed) against their target c and eigenvalues.

    ``test_risk`` is E_test including noise; ``measurement_variance`` the variance of each v_k beyond that
    over training sets. ``start`` defaults to the median eigenvalue of the 2P leading modes. Error bars are
    right to 4 % on Gaussian data (P >= 150). O(D) a step, at most 200 steps.

    Raises ``ValueError`` for bad inputs and where no mode bounds kappa (all c or all v zero),
    ``RuntimeError`` where the iteration does not settle.
    """
    v, c, eta = _modes(coefficients, target, eigenvalues)
    _check_scalars(num_samples, test_risk, gamma)
    extra = (
        torch.zeros_like(v)
        if measurement_variance is None
        else as_float64("measurement_variance", measurement_variance)
    )

    def residuals(learned: Tensor) -> tuple[Tensor, Tensor]:
        return v - learned * c, learned.square() * test_risk / num_samples + extra

    shrinkage = shrinkage_of(eta)
    log_kappa, information = descend(residuals, c, shrinkage, _first_guess(eta, num_samples, start))
    floor = 1 / (num_samples * (1 - gamma))
    se = math.sqrt(1 / information + floor)
    return with_profile(residuals, c, shrinkage, log_kappa, se, floor)


def kappa_from_heldout(
    predictions: Float[Tensor, " t"],
    labels: Float[Tensor, " t"],
    modes: Float[Tensor, "points entries"],
    target: Float[Tensor, " modes"],
    eigenvalues: Float[Tensor, " modes"],
    *,
    num_samples: Number,
    test_risk: Number,
    gamma: Number,
    start: Number | None = None,
) -> ModeEstimate:
    """kappa from a predictor on T held-out points, whose orthonormal eigenfunctions phi_k(x) are ``modes``
    (t, modes).

    The residual of mode k is the mean of phi_k (f - L_k y), of mean zero, so the error of an estimated c_k
    does not enter it; ``target`` (population or pool c_k, or mean phi_k y) only sets the weights. Take modes
    on both sides of kappa. On Gaussian data ``se_log`` is right to 5 % where it is below 0.3. O(T D) once,
    then O(D) a step.

    Raises as ``kappa_from_modes``.
    """
    f, y, phi = (
        as_float64("predictions", predictions),
        as_float64("labels", labels),
        as_float64("modes", modes),
    )
    c, eta = as_float64("target", target), as_float64("eigenvalues", eigenvalues)
    same_length("labels", y, "predictions", len(f))
    if phi.shape != (len(f), len(eta)):
        raise ValueError(f"modes has shape {tuple(phi.shape)}; pass (points, modes) = {(len(f), len(eta))}")
    same_length("target", c, "eigenvalues", len(eta))
    _check_scalars(num_samples, test_risk, gamma)

    shrunk, full, spreads = _product_moments(phi, f, y)

    def residuals(learned: Tensor) -> tuple[Tensor, Tensor]:
        over_points = spreads[0] - 2 * learned * spreads[1] + learned.square() * spreads[2]
        variance = learned.square() * test_risk / num_samples + over_points.clamp_min(0) / len(f)
        return shrunk - learned * full, variance

    shrinkage = shrinkage_of(eta)
    log_kappa, information = descend(residuals, c, shrinkage, _first_guess(eta, num_samples, start))
    learned, slope = shrinkage(log_kappa)
    jacobian = slope * c
    weight = jacobian / residuals(learned)[1] / information
    data = float((weight.square() * learned.square()).sum()) * test_risk / num_samples
    # the modes share the same held-out points: variance of the combination, not sum of the variances
    floor = 1 / (num_samples * (1 - gamma))
    combined = f * (phi @ weight) - y * (phi @ (weight * learned))
    se = math.sqrt(data + floor + float(combined.var()) / len(f))
    return with_profile(residuals, c, shrinkage, log_kappa, se, floor)


def _product_moments(phi: Tensor, f: Tensor, y: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Per mode the means of phi f and phi y over points, then their variances and covariance (ff, fy, yy)."""
    first, second = phi * f[:, None], phi * y[:, None]
    means = first.mean(0), second.mean(0)
    first, second = first - means[0], second - means[1]
    spreads = [(u * w).sum(0) / (len(f) - 1) for u, w in ((first, first), (first, second), (second, second))]
    return *means, (spreads[0], spreads[1], spreads[2])


def _modes(v: Tensor, c: Tensor, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    v, c = as_float64("coefficients", v), as_float64("target", c)
    eta = positive("eigenvalues", as_float64("eigenvalues", eta))
    same_length("target", c, "coefficients", len(v))
    same_length("eigenvalues", eta, "coefficients", len(v))
    return v, c, eta


def _check_scalars(num_samples: Number, test_risk: Number, gamma: Number) -> None:
    for name, value in (("num_samples", num_samples), ("test_risk", test_risk)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value:g} must be positive and finite; pass the measured value")
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma={gamma:g} must lie in [0, 1); pass df2/num_samples")


def _first_guess(eta: Tensor, num_samples: Number, start: Number | None) -> float:
    if start is not None:
        if not start > 0:
            raise ValueError(f"start={start:g} must be > 0; pass a guess of kappa")
        return math.log(start)
    leading = eta.sort(descending=True).values[: max(1, int(2 * num_samples))]
    return math.log(float(leading.median()))


def descend(residuals: Residuals, c: Tensor, shrinkage: Shrinkage, log_kappa: float) -> tuple[float, float]:
    """Gauss-Newton in log kappa with the weights refreshed each step; steps clipped to 1, halved when they turn.

    Returns log kappa and the information about it. Raises as ``kappa_from_modes``.
    """
    damping, previous = 1.0, 0.0
    information = 0.0
    for _ in range(200):
        learned, slope = shrinkage(log_kappa)
        jacobian = slope * c
        residual, variance = residuals(learned)
        information = float((jacobian.square() / variance).sum())
        if not information > 0:
            raise ValueError(
                f"no mode constrains kappa (log kappa went to {log_kappa:.1f}): pass modes with a target coefficient "
                "and eigenvalues on both sides of kappa, or more held-out points"
            )
        step = max(-1.0, min(1.0, float((jacobian * residual / variance).sum()) / information))
        damping = damping / 2 if step * previous < 0 and abs(step) > 0.5 * abs(previous) else damping
        log_kappa, previous = log_kappa + damping * step, step
        if abs(step) < 1e-10:
            return log_kappa, information
    raise RuntimeError(
        f"kappa_from_modes: last step {previous:.1e} in log kappa = {log_kappa:.3f} after 200 steps; pass a "
        "start nearer the solution, or modes with eigenvalues on both sides of kappa"
    )


def with_profile(
    residuals: Residuals, c: Tensor, shrinkage: Shrinkage, log_kappa: float, se: float, floor: float
) -> ModeEstimate:
    """The interval where |score| <= 1 standard error: score(x)^2 = 1 + floor * information, both at x
    itself.
    """

    def outside(x: float) -> bool:
        learned, slope = shrinkage(x)
        jacobian = slope * c
        residual, variance = residuals(learned)
        information = float((jacobian.square() / variance).sum())
        score = float((jacobian * residual / variance).sum())
        return score**2 > information * (1 + floor * information)

    ends = [_crossing(outside, log_kappa, sign * se) for sign in (-1, 1)]
    return ModeEstimate(math.exp(log_kappa), se, (ends[0] and math.exp(ends[0])) or 0.0, _upper(ends[1]))


def _upper(end: float | None) -> float:
    return math.inf if end is None else math.exp(end)


def _crossing(outside: Callable[[float], bool], centre: float, step: float) -> float | None:
    """The first crossing found in the direction of ``step``, to 1e-3 of it; None within 60 e-folds."""
    inner, outer = centre, centre + step
    while abs(outer - centre) <= 60 and not outside(outer):
        inner, outer = outer, centre + 2 * (outer - centre)
    if abs(outer - centre) > 60:
        return None
    while abs(outer - inner) > 1e-3 * abs(step):
        middle = (inner + outer) / 2
        inner, outer = (inner, middle) if outside(middle) else (middle, outer)
    return (inner + outer) / 2
