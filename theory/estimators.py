"""What a training kernel reveals by itself: effective ridge, degrees of freedom, risk, each with its error
bar.

Symbols: P samples, C outputs, K unnormalised Gram matrix, lam ridge of the loss (P lam is added to K),
R = (K/P + lam)^-1, e_i eigenvalues of K/P, r_j = mean (e+lam)^-j.

The error bars need no population spectrum. The known variance and bias of log kappa_hat (from the
Bai-Silverstein limit of log determinants) depend on the population only through derivatives of kappa(lam) =
1/m, m = r_1: the variance is (kappa/P)^2/3 times the Schwarzian derivative of m, the bias kappa kappa''/(2 P
kappa'). Both are moments of the resolvent that was measured. Derivation in docs/theory/estimators.md.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ridgescope.theory._checks import Number, as_float64, nonnegative
from ridgescope.theory.pool import PoolEstimator, PoolPrediction, checked_gram
from ridgescope.theory.resolvents import Resolvent, Resolvents


@dataclass(frozen=True)
class ResolventEstimate:
    """kappa in units of the kernel; ``se_log``, ``bias_log`` of log kappa (Gaussian data); df1; gamma.

    ``kappa_corrected = kappa exp(-bias_log)``. With finite width these estimate kappa_1, df1 and gamma_1.
    """

    kappa: float
    kappa_corrected: float
    se_log: float
    bias_log: float
    df1: float
    gamma: float


def resolvent_estimate(
    eigenvalues: Float[Tensor, " n"], *, ridge: Number, num_samples: Number | None = None
) -> ResolventEstimate:
    """kappa_hat = P / tr (K/P + lam)^-1 and its companions from the eigenvalues of ``K/P`` (all of them,
    zeros too).

    ``num_samples`` defaults to the number of eigenvalues; pass P for a full C x C kernel (P*C eigenvalues),
    whose df1 is then per output and whose error bar is that of C equal blocks. Error bars: 4 % accurate on
    Gaussian data for P >= 150; on real kernels use the spread over subsamples. Negative eigenvalues within
    rounding are set to 0. O(n), given the eigenvalues. Sources: kappa arXiv:2006.09796, gamma
    arXiv:2405.00592, errors derived (docs).

    Raises ``ValueError`` for ``ridge < 0`` and for ``ridge = 0`` with a singular kernel, where kappa_hat = 0.

    >>> fit = resolvent_estimate(torch.ones(100, dtype=torch.float64), ridge=1.0)
    >>> fit.kappa, fit.df1, fit.se_log
    (2.0, 50.0, 0.0)
    """
    e = rounded_nonnegative("eigenvalues", eigenvalues)
    n = float(len(e)) if num_samples is None else float(num_samples)
    if not (n > 0 and math.isfinite(n)):
        raise ValueError(f"num_samples={n:g} must be positive and finite; pass the number of training points")
    check_ridge(ridge)
    shifted = e + ridge
    if float(shifted.min()) <= 0:
        zeros = int((shifted <= 0).sum())
        raise ValueError(
            f"ridge=0 with {zeros} zero eigenvalues gives kappa = 0; pass ridge > 0, e.g. "
            f"{1e-12 * float(e.sum()) / n:.1e}"
        )
    inverse = 1 / shifted
    r1, r2 = float(inverse.mean()), float(inverse.square().mean())
    kappa = 1 / r1
    # e/(e+lam) averages to 1 - lam/kappa, without its cancellation
    df1 = n * float((e * inverse).mean())
    # moments of 1/(e+lam) under weights 1/(e+lam)^2: the mean gives the bias, the spread the standard error
    mean = float((inverse**3).mean()) / r2
    spread = float((inverse.square() * (inverse - mean).square()).mean()) / r2
    bias = (r2 / r1 - mean) / (n * r1)
    se = kappa / n * math.sqrt(2 * spread)
    gamma = float((inverse - r1).square().mean()) / r2
    return ResolventEstimate(kappa, kappa * math.exp(-bias), se, bias, df1, gamma)


@dataclass(frozen=True)
class KernelRidgeFit:
    """Kernel ridge regression on P points: f(x) = k(x) @ dual. Risks are summed over outputs, mean over
    samples.
    """

    dual: Float[Tensor, "p c"]
    train: float
    gcv: float
    loo: float


def kernel_ridge(gram: Float[Tensor, "p n"], targets: Float[Tensor, "rows c"], ridge: Number) -> KernelRidgeFit:
    """Fit ``gram (p, p) + P ridge`` to ``targets`` (p, c), and estimate the test risk from the same factorisation.

    About P^3 operations; for several ridges of one kernel use `Resolvents` and `kernel_ridge_fit`.

    Raises ``ValueError`` for unfit inputs, and where the kernel cannot carry the ridge.
    """
    gram = checked_gram(gram)
    check_ridge(ridge)
    return kernel_ridge_fit(Resolvents(gram / len(gram)).at(ridge), targets)


def kernel_ridge_fit(resolvent: Resolvent, targets: Float[Tensor, "rows c"]) -> KernelRidgeFit:
    """Kernel ridge regression of ``targets`` (P, c) with a kernel whose resolvent is at hand: P^2 c operations.

    ``gcv`` (= KARE, arXiv:2006.09796) assumes Gaussian-like data and is low by tens of per cent on images at
    small ridge; ``loo`` is the exact leave-one-out risk. Where they disagree trust ``loo``.
    """
    targets = as_float64("targets", targets)
    p = resolvent.certificate.size
    if targets.ndim != 2 or len(targets) != p:
        raise ValueError(f"targets has shape {tuple(targets.shape)}; pass one row for each of the {p} samples")
    solution = resolvent.times(targets)  # R y: residuals are lam R y, left-out residuals (R y)_mu / R_mumu
    power = float(solution.square().sum()) / p
    loo = float((solution / resolvent.blocks()[:, 0]).square().sum()) / p
    return KernelRidgeFit(solution / p, resolvent.ridge**2 * power, power / resolvent.mean() ** 2, loo)


@dataclass(frozen=True)
class KappaEstimate:
    """kappa and the standard error of its logarithm."""

    kappa: float
    se_log: float


def kappa_from_risks(
    test_risk: Number,
    train_risk: Number,
    ridge: Number,
    *,
    num_samples: Number,
    gamma: Number,
    test_squared_errors: Float[Tensor, " t"] | None = None,
    outputs: Number = 1,
) -> KappaEstimate:
    """kappa = lam sqrt(E_test/E_train), since E_train = (lam/kappa)^2 E_test (arXiv:2110.03922).

    ``gamma`` is df2/P, measured or predicted; it carries the correlated fluctuation of E_train, which the
    naive error of a mean would understate by up to a half. ``test_squared_errors`` (t) gives the error of
    ``test_risk``, which counts as exact without it. ``outputs`` is the number of independent ones, over which the
    fluctuation averages (``independent_outputs``). O(t).

    Raises ``ValueError`` unless ridge, both risks and num_samples are positive and 0 <= gamma < 1.
    """
    for name, value in (
        ("ridge", ridge),
        ("test_risk", test_risk),
        ("train_risk", train_risk),
        ("num_samples", num_samples),
    ):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(
                f"{name}={value:g} must be positive and finite; the risk ratio needs lam > 0 and errors > 0"
            )
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma={gamma:g} must lie in [0, 1); pass df2/num_samples")
    if not outputs >= 1:
        raise ValueError(f"outputs={outputs:g} must be at least 1; pass independent_outputs(residuals)")
    variance = 2 * (1 + gamma) / (num_samples * (1 - gamma) * outputs)
    if test_squared_errors is not None:
        errors = as_float64("test_squared_errors", test_squared_errors)
        if len(errors) < 2:
            raise ValueError(f"test_squared_errors has {len(errors)} entries; pass at least 2, or None")
        variance += float(errors.var() / errors.mean() ** 2) / len(errors)
    return KappaEstimate(ridge * math.sqrt(test_risk / train_risk), 0.5 * math.sqrt(variance))


def independent_outputs(residuals: Float[Tensor, "t c"]) -> float:
    """How many uncorrelated outputs of equal size would fluctuate like these: (tr E)^2/tr E^2 of their covariance.

    1 for one output; C for C alike and uncorrelated. O(t c^2).
    """
    covariance = residuals.T @ residuals
    return float(covariance.trace().square() / covariance.square().sum())


def pool_kappa_errors(pool: PoolEstimator, prediction: PoolPrediction, num_samples: Number) -> tuple[float, float]:
    """(se, bias) of log kappa2 of ``pool.predict`` at infinite width: the pool is a sample too (Gaussian data).

    With k the pool ridge, the pool's own resolvent has log kappa_M(k) = truth + noise, and lam = kappa (1-d1/P) turns
    an error of it into (M-df2)/(P-df2) times itself. A training set of the pool shares this error: with kappa_hat its
    resolvent's estimate, Cov(log kappa_hat, log kappa2) = Var(log kappa2), so Var(log kappa_hat/kappa2) is the
    *difference* of the variances, and training sets of one pool are uncorrelated given it. O(M).
    """
    own = resolvent_estimate(pool.eigenvalues, ridge=prediction.pool_ridge)
    factor = (pool.size - prediction.df2) / (num_samples - prediction.df2)
    return factor * own.se_log, factor * own.bias_log


def check_ridge(ridge: Number) -> None:
    """Refuse a ridge that is negative or not finite."""
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge={ridge:g} must be finite and >= 0; pass the lam of the loss")


def rounded_nonnegative(name: str, values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Eigenvalues of a positive matrix as computed: those negative within rounding become 0, others are
    refused.
    """
    values = as_float64(name, values)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; pass a non-empty vector")
    floor = 1e-10 * float(values.max()) if bool(torch.isfinite(values).all()) else 0.0
    nonnegative(name, torch.where(values > -floor, values.clamp_min(0), values))
    return values.clamp_min(0)
