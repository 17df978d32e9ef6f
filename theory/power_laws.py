"""Power-law spectra: closed forms, scaling exponents, and which resource limits a given fit.

eta_k = k^-alpha (alpha > 1) and c_k^2 = k^-(2 alpha r + 1) with source r > 0, infinitely many modes,
C = (pi/alpha)/sin(pi/alpha). Leading order in 1/df1 (the neglected terms are O(1) in df1):

    df1 = C kappa^(-1/alpha),   df2 = (1 - 1/alpha) df1,   d12 = df1/alpha

Symbols: P samples, N width, lam ridge, s2 noise, r1 = min(r, 1), rh = min(2r, 1).
Sources: arXiv:2105.15004 and arXiv:2405.00592 for the regimes; constants derived in
docs/theory/power_laws.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.special import zeta
from torch import Tensor

from ridgescope.theory._checks import Number, Real
from ridgescope.theory.curves import optimal_ridge
from ridgescope.theory.renormalisation import Features, Samples
from ridgescope.theory.risks import Risks, risks
from ridgescope.theory.spectra import compressed_power_law

Resource = Literal["samples", "width", "ridge", "noise"]


def power_law_constant(alpha: Number) -> float:
    """C with df1 = C kappa^(-1/alpha)."""
    if not alpha > 1:
        raise ValueError(f"alpha={alpha:g} must exceed 1 for a finite trace; use power_law with a cutoff below that")
    return math.pi / alpha / math.sin(math.pi / alpha)


def power_law_kappa(alpha: Number, *, num_samples: Number, width: Number = math.inf, ridge: Number = 0.0) -> float:
    """kappa_2 of ``lam = kappa (1 - df1/P) (1 - df1/N)`` with the closed form of df1; ridgeless
    (C/min(P,N))^alpha.

    Relative accuracy O(1/min(P, N)) against the full sums. Bisection in log kappa, no spectrum.

    >>> round(power_law_kappa(2.0, num_samples=100.0) * 1e4, 6) == round((math.pi / 2) ** 2, 6)
    True
    """
    c, smallest = power_law_constant(alpha), min(num_samples, width)
    if not smallest > 0 or ridge < 0 or math.isinf(smallest):
        raise ValueError(f"num_samples={num_samples:g}, width={width:g} must be > 0, one finite, ridge={ridge:g} >= 0")
    low = (c / smallest) ** alpha
    if ridge == 0:
        return low

    def excess(kappa: Number) -> float:
        df1 = c * kappa ** (-1 / alpha)
        return kappa * (1 - df1 / num_samples) * (1 - df1 / width) - ridge

    # at the ridgeless kappa the left side is 0, and it grows without bound
    high = low + ridge
    while excess(high) < 0:
        high *= 2
    while high - low > 4e-16 * high:
        middle = math.sqrt(low * high)
        if middle in (low, high):
            break
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    return math.sqrt(low * high)


def power_law_bias(alpha: Number, source: Number, kappa: Number) -> float:
    """b = sum c^2 U^2 at small kappa: saturates at kappa^2 for r > 1, with a logarithm at r = 1."""
    power_law_constant(alpha)
    if not (source > 0 and kappa > 0):
        raise ValueError(f"source={source:g} and kappa={kappa:g} must be > 0; pass positive numbers")
    if source < 1:
        return kappa ** (2 * source) * math.gamma(2 - 2 * source) * math.gamma(2 * source) / alpha
    if source == 1:
        return kappa**2 * math.log(1 / kappa) / alpha
    return kappa**2 * float(zeta(2 * alpha * (source - 1) + 1))


@dataclass(frozen=True)
class Scaling:
    """A regime's leading term ~ variable^exponent. ``condition`` says where it rules."""

    condition: str
    variable: str
    exponent: float


def scaling_regimes(alpha: Number, source: Number) -> dict[str, Scaling]:
    """The exponents of every regime (logarithms at r = 1 and r = 1/2 left out).

    Fitted exponents over less than two decades deviate by 5 % even where these hold.
    """
    power_law_constant(alpha)
    if not source > 0:
        raise ValueError(f"source={source:g} must be > 0; c_k^2 = k^-(2 alpha source + 1) must be summable")
    r1, rh = min(source, 1.0), min(2 * source, 1.0)
    return {
        "data-limited": Scaling("lam << P^-alpha, P << N", "P", -2 * alpha * r1),
        "width-limited": Scaling("lam << N^-alpha, N << P", "N", -alpha * rh),
        "ridge-limited": Scaling("lam >> min(P, N)^-alpha", "lam", 2 * r1),
        "feature-variance": Scaling("P << N << P^(2 alpha r1 + 1 - alpha rh); times 1/N", "P", 1 - alpha * rh),
        "variance-limited in N": Scaling("P fixed, N -> inf: E - E_inf", "N", -1.0),
        "variance-limited in P": Scaling("N or lam fixed, P -> inf: E - E(P = inf)", "P", -1.0),
        "noise plateau": Scaling("s2 large, lam << P^-alpha", "P", 0.0),
        "noise, fixed ridge": Scaling("s2 large, lam >> P^-alpha; times 1/P", "lam", -1 / alpha),
    }


@dataclass(frozen=True)
class Diagnosis:
    """Where a fit stands. ``regime`` is a key of ``scaling_regimes``; ``shares`` splits the excess risk.

    ``gains`` is the factor by which the excess risk falls on doubling the samples, doubling the width, tuning
    the ridge, or halving the noise; ``best`` the largest. ``slopes`` are d log excess/d log of P, N and lam.
    """

    regime: str
    shares: dict[str, float]
    slopes: dict[str, float]
    gains: dict[Resource, float]
    best: Resource
    tuned_ridge: float


def diagnose(
    alpha: Number,
    source: Number,
    *,
    num_samples: Number,
    width: Number = math.inf,
    ridge: Number = 0.0,
    noise: Number = 0.0,
    num_modes: Number = 1e10,
) -> Diagnosis:
    """Which regime (P, N, lam, noise) is in, and what would improve the risk most.

    Evaluates the full theory (not the asymptotics) on ``num_modes`` modes in a few hundred quadrature nodes,
    so it is right in the crossovers too. The named regime is the largest share: noise, then feature variance,
    then whatever sets kappa (ridge where kappa_2 < 2 lam, else the smaller of P and N). Milliseconds.

    >>> diagnose(1.5, 0.4, num_samples=1e3).regime
    'data-limited'
    """
    scaling_regimes(alpha, source)
    spectrum, target = compressed_power_law(num_modes, alpha, 2 * alpha * source + 1, noise=noise)

    def at(p: Real, n: Real, lam: Real) -> Risks:
        return risks(spectrum, target, Samples(p) @ Features(n), lam)

    here = at(num_samples, width, ridge)
    excess = float(here.excess)
    names = ("bias2", "var_X", "var_F", "var_XF", "var_noise", "var_Fnoise")
    shares = {name: float(getattr(here, name)) / excess for name in names}
    tuned = optimal_ridge(spectrum, target, Samples(num_samples) @ Features(width))
    quiet = (float(here.var_noise) + float(here.var_Fnoise)) / 2
    gains: dict[Resource, float] = {
        "samples": excess / float(at(2 * num_samples, width, ridge).excess),
        "width": excess / float(at(num_samples, 2 * width, ridge).excess),
        "ridge": max(1.0, excess / float(at(num_samples, width, tuned).excess)),
        "noise": excess / (excess - quiet),
    }
    regime = _regime(shares, float(here.scale.kappa2), num_samples, width, ridge)
    slopes = _slopes(at, num_samples, width, ridge)
    return Diagnosis(regime, shares, slopes, gains, max(gains, key=lambda name: gains[name]), tuned)


def _regime(shares: dict[str, float], kappa2: Number, num_samples: Number, width: Number, ridge: Number) -> str:
    bound_by_ridge = kappa2 < 2 * ridge
    if shares["var_noise"] + shares["var_Fnoise"] > 0.5:
        return "noise, fixed ridge" if bound_by_ridge else "noise plateau"
    if num_samples < width and shares["var_F"] + shares["var_XF"] > 0.5:
        return "feature-variance"
    if bound_by_ridge:
        return "ridge-limited"
    return "data-limited" if num_samples <= width else "width-limited"


def _slopes(
    at: Callable[[Tensor, Tensor, Tensor], Risks], num_samples: Number, width: Number, ridge: Number
) -> dict[str, float]:
    inputs = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (num_samples, width, ridge)]
    result = at(*inputs)
    slopes = torch.autograd.grad(result.excess.log(), inputs)
    scaled = zip(("P", "N", "lam"), slopes, inputs, strict=True)
    return {name: float(slope * x.detach()) if torch.isfinite(x.detach()) else 0.0 for name, slope, x in scaled}
