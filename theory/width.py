"""The effective number of features of a finite-width kernel, read off its loss of degrees of freedom.

Symbols: K_N measured kernel, K_inf its infinite-width limit, P samples, lam ridge, df = tr (K_N/P)(K_N/P +
lam)^-1, e_i eigenvalues of K_inf/P, lt the ridge at which K_inf has the same df. N random features
renormalise lam to lt = lam/(1 - df/N), so 1/N = (1 - lam/lt)/df. Everything stays on the scale of 1/N, which
is close to Gaussian and may be <= 0 (consistent with infinite width); N itself is heavy-tailed.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ridgescope.theory._checks import Number
from ridgescope.theory.estimators import check_ridge, rounded_nonnegative
from ridgescope.theory.solver import solve_kappa
from ridgescope.theory.spectra import Spectrum


@dataclass(frozen=True)
class WidthEstimate:
    """1/N with its standard error. ``bias`` has been subtracted from ``inverse_width``; ``width`` is inf
    where <= 0.
    """

    inverse_width: float
    se: float
    bias: float
    width: float


def effective_width(gram_eigenvalues_inf: Float[Tensor, " n"], df1: Number, ridge: Number) -> WidthEstimate:
    """N_eff from the infinite-width Gram matrix on the same inputs; no population spectrum enters.

    ``gram_eigenvalues_inf`` are the eigenvalues of ``K_inf/P``, ``df1 = tr (K_N/P)(K_N/P + ridge)^-1`` of the
    finite-width kernel on the same points. The error bar counts the draw of N Gaussian features (one-draw
    resolution: 0.4-10 % for N from P/2 to 15 P); for networks replace it by the spread over independent
    draws. Where 1/N is below its own resolution the error is taken at the resolution. O(n) per solver step.
    Derived (docs).

    Raises ``ValueError`` for ``df1`` outside (0, rank) and for ``ridge`` negative.
    """
    e = rounded_nonnegative("gram_eigenvalues_inf", gram_eigenvalues_inf)
    check_ridge(ridge)
    rank = int((e > 0).sum())
    if not 0 < df1 < rank:
        raise ValueError(f"df1={df1:g} must lie in (0, rank={rank}) of the infinite-width kernel; use more samples")
    lt = float(solve_kappa(e, None, e.new_zeros(()), e.new_zeros(1), e.new_tensor([[df1]])))
    raw = (1 - ridge / lt) / df1
    d12 = float((e * lt / (e + lt) ** 2).sum())
    # log lt changes by -d df1/d12, hence d(1/N)/d df1
    slope = -((1 - ridge / lt) / df1 + ridge / lt / d12) / df1
    unit = abs(slope) * ridge / lt
    # at large N, se = c / sqrt(N): where 1/N < c^2 the point value cannot say which N to use for its own
    # error
    resolution = unit**2 * 2 * lt**2 * float((e**2 / (e + lt) ** 4).sum())
    plug_in = max(raw, resolution)
    if plug_in <= 0:  # ridge = 0: df1 is fixed by N alone and does not fluctuate
        return WidthEstimate(raw, 0.0, 0.0, math.inf)
    sd_log, bias_log = log_kappa_errors(e, None, 1 / plug_in, lt)
    se, bias = unit * sd_log / plug_in, slope * ridge / lt * bias_log / plug_in
    inverse = raw - bias
    return WidthEstimate(inverse, se, bias, 1 / inverse if inverse > 0 else math.inf)


def log_kappa_errors(
    eigenvalues: Float[Tensor, " n"], multiplicities: Float[Tensor, " n"] | None, size: Number, kappa: float
) -> tuple[float, float]:
    """Standard deviation and bias of log kappa_hat over ``size`` Gaussian draws from a known spectrum.

    sd = (kappa/n) sqrt(2 A_4/(1-g) + 2 A_3^2/(1-g)^2)/(1-g), bias = -(kappa/n) A_3/(1-g)^2 with
    A_j = (1/n) sum m eta^2/(eta+kappa)^j and g = A_2; both are O(1/n). Derived from the central limit theorem
    of Bai and Silverstein for linear spectral statistics (docs). Raises ``ValueError`` where g >= 1.
    """
    weight = torch.ones_like(eigenvalues) if multiplicities is None else multiplicities
    a2, a3, a4 = (float((weight * eigenvalues**2 / (eigenvalues + kappa) ** j).sum()) / size for j in (2, 3, 4))
    free = 1 - a2
    if free <= 0:
        raise ValueError(f"gamma={a2:g} at size={size:g}, kappa={kappa:g} must be below 1; pass a larger ridge or size")
    sd = kappa / (size * free) * math.sqrt(2 * a4 / free + 2 * a3**2 / free**2)
    return sd, -kappa / size * a3 / free**2


def effective_width_from_population(
    spectrum: Spectrum, *, kappa1: Number, num_samples: Number, ridge: float
) -> WidthEstimate:
    """N_eff of a finite-width kernel from its measured ``kappa1`` and the population spectrum of K_inf.

    ``kappa1`` is the resolvent estimate of the finite-width kernel on ``num_samples`` points, *not* corrected
    for bias: the two-level bias (data and features) is computed and subtracted here. df = P (1 - lam/kappa1),
    df1(kappa2) = df, 1/N = (1 - kappa1/kappa2)/df. Counts the draw of data and features; z-scores have spread
    0.96-1.04 on Gaussian data. Prefer ``effective_width`` where the same inputs are at hand: its resolution
    is 1.2-2 times better and no spectrum is needed. O(D). Derived in docs/theory/width.md.

    Raises ``ValueError`` for kappa1 <= ridge, or df beyond the rank of the spectrum.
    """
    check_ridge(ridge)
    if not (kappa1 > ridge and math.isfinite(kappa1)):
        raise ValueError(f"kappa1={kappa1:g} must be finite and exceed ridge={ridge:g}; measure it on more samples")
    df1 = num_samples * (1 - ridge / kappa1)
    if not 0 < df1 < spectrum.rank:
        raise ValueError(f"df={df1:g} must lie in (0, rank={spectrum.rank:g}); list more modes or pass a bulk")
    eta, m = spectrum.eta, torch.ones_like(spectrum.eta) if spectrum.counts is None else spectrum.counts
    if float(spectrum.bulk_trace) > 0:
        raise ValueError("a bulk has no fluctuation formula here; list its modes as one block with multiplicity")
    zero, one_size = eta.new_zeros(()), eta.new_tensor([[df1]])
    kappa2 = float(solve_kappa(eta, spectrum.counts, zero, eta.new_zeros(1), one_size))
    raw = (1 - kappa1 / kappa2) / df1
    d12 = float((m * eta * kappa2 / (eta + kappa2) ** 2).sum())
    # d df1/d log kappa1 = P lam/kappa1, and d log kappa2 = -d df1/d12
    ddf = num_samples * ridge / kappa1
    slope = -raw * ddf / df1 - kappa1 / kappa2 * (1 + ddf / d12) / df1
    inverse = raw
    # the width enters its own bias: three rounds of substitution leave O(1/P^2)
    for _ in range(3):
        plug_in = min(max(inverse, 1e-6 / df1), 1 / df1)
        sd_log, bias_log = two_level_errors(eta, m, num_samples, 1 / plug_in, kappa1, kappa2)
        inverse = raw - slope * bias_log
    return WidthEstimate(inverse, abs(slope) * sd_log, slope * bias_log, 1 / inverse if inverse > 0 else math.inf)


def two_level_errors(
    eta: Float[Tensor, " n"],
    m: Float[Tensor, " n"],
    num_samples: Number,
    width: Number,
    kappa1: Number,
    kappa2: Number,
) -> tuple[float, float]:
    """Standard deviation and bias of log kappa_1_hat over Gaussian data and features.

    With h(kappa_1) = kappa_1 df1(kappa_2(kappa_1)): the data see the kernel averaged over features through
    h'' and h''', the features add their own determinant fluctuation (B_j, gN). Derived (docs).
    """
    a = [float((m * eta**2 / (eta + kappa2) ** j).sum()) for j in range(5)]  # a[j] = sum m eta^2/(eta+kappa)^j
    gn, b3, b4 = a[2] / width, a[3] / width, a[4] / width
    p = 1 - gn
    # with k = kappa_2: df = df1(k), f' = -sum eta/(eta+k)^2 and so on; k1 = k (1 - df/N), k' = 1/p, k'' = -2
    # B3/p^3
    s = [float((m * eta / (eta + kappa2) ** j).sum()) for j in range(5)]
    k1, k2 = 1 / p, -2 * b3 / p**3
    k3 = (6 * b4 + 12 * b3**2 / p) / p**4
    f1, f2, f3 = -s[2], 2 * s[3], -6 * s[4]
    d1 = f1 * k1
    d2 = f2 * k1**2 + f1 * k2
    d3 = f3 * k1**3 + 3 * f2 * k1 * k2 + f1 * k3
    h1, h2, h3 = s[1] + kappa1 * d1, 2 * d1 + kappa1 * d2, 3 * d2 + kappa1 * d3
    free = 1 - h1 / num_samples
    ga, gab = h2 / (2 * num_samples), h3 / (6 * num_samples)
    data = 2 * (gab / free + (ga / free) ** 2)
    features = 2 / p**2 * (b4 / p + (b3 / p) ** 2)
    sd = kappa1 / num_samples * math.sqrt(data + features) / free
    bias = -kappa1 / (2 * num_samples) * (-h2 / (num_samples * free) + 2 * b3 / (p * p)) / free
    return sd, bias
