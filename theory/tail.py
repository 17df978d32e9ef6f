"""The population seen by a pool, continued beyond it: what P > M samples would give.

A pool of M points gives, at every pool ridge k, its kappa, D = df1 and left-out risk G (`ridgescope.theory.pool`), down
to the kappa that M points resolve. How D and G change with the number n of points at a fixed kappa is the law

    D = D_inf/(1 + c/n),        G = B/(1 - w/n),

in which Gaussian data have c = 0 and w = df2 = D + dD/dlog kappa. Images do not: D is less than D_inf by 10 % at s near
1, and w is 0.6 to 1.7 df2. Both are therefore measured, by leaving out two points (`ridgescope.theory.pairs`).
From them any P and ridge follow by ``lam = kappa (1 - D/P)`` and ``E = B/(1 - w/P)``. Below the smallest kappa D_inf
and B go on as power laws, fitted to the last decade that is resolved: eta_k ~ k^-a makes D ~ kappa^(-1/a), a power-law
target makes B = s2 + A kappa^b. Derived in docs/forecast.md.

Letters: M pool points, P samples, C outputs, K pool ridges, s = D/points, u = D_inf/points.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory._checks import Number
from ridgescope.theory.pairs import PairReadings
from ridgescope.theory.pool import PoolEstimator

TAIL_DECADES = 1.0  # of kappa, from the smallest that is resolved, to which the power laws are fitted
RESOLVED = 0.9  # share of a pool's degrees of freedom up to which its readings are used
STEP = 0.02  # of log kappa on the grid where curves are inverted


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
    if targets.shape[1] > 1:
        return (predicted.argmax(2) == targets.argmax(1)[:, None]).double().mean(0)
    if float(targets.abs().std()) > 1e-6 * float(targets.abs().mean()):
        return torch.full((residual.shape[1],), math.nan, dtype=torch.float64)
    return (predicted * targets[:, None] > 0)[:, :, 0].double().mean(0)


@dataclass(frozen=True)
class TailForecast:
    """``test`` risk at P samples and ridge lam, s = D/P, ``gamma`` = w/P; ``beyond`` = log of the smallest kappa that
    the pool resolves over the wanted one: at most 0 where nothing but the formula is extrapolated; ``tail_error`` of
    log risk, half the distance of the two tails that the readings allow."""

    kappa: Float64[Tensor, " n"]
    share: Float64[Tensor, " n"]
    gamma: Float64[Tensor, " n"]
    test: Float64[Tensor, " n"]
    beyond: Float64[Tensor, " n"]
    tail_error: Float64[Tensor, " n"]


@dataclass(frozen=True)
class PopulationCurve:
    """log D_inf and log B against rising log kappa, with power laws below the first, and the ratios c/D_inf ("excess")
    and w/D_inf ("spread"), which stay as they are at the first.

    ``df1_slope`` = d log D_inf/d log kappa of the tail. B_0 (kappa/kappa_0)^``straight`` is one tail of B, which has no
    floor; B_0 (floor + (1 - floor) (kappa/kappa_0)^bias_slope) the other, whose floor the bend of the last decade asks
    for if all of it is noise. The truth lies between; the forecast is their geometric mean.
    """

    log_kappa: Float64[Tensor, " k"]
    log_df1: Float64[Tensor, " k"]
    log_bias: Float64[Tensor, " k"]
    excess: Float64[Tensor, " k"]
    spread: Float64[Tensor, " k"]
    df1_slope: float
    bias_slope: float
    floor: float
    straight: float

    @property
    def spectrum_exponent(self) -> float:
        """a of eta_k ~ k^-a, from D ~ kappa^(-1/a)."""
        return -1 / self.df1_slope if self.df1_slope < 0 else math.inf

    def at(self, log_kappa: Float64[Tensor, " n"]) -> tuple[Tensor, Tensor, Tensor]:
        """log D_inf, log B, and half the distance of the two tails of log B."""
        below = (log_kappa - self.log_kappa[0]).clamp_max(0)
        df1 = interpolate(log_kappa, self.log_kappa, self.log_df1) + self.df1_slope * below
        fall = (self.floor + (1 - self.floor) * (self.bias_slope * below).exp()).log()
        straight = self.straight * below
        bias = interpolate(log_kappa, self.log_kappa, self.log_bias) + (fall + straight) / 2
        return df1, bias, (fall - straight).abs() / 2

    def forecast(self, num_samples: Number, ridges: Float64[Tensor, " n"]) -> TailForecast:
        """Test risk of ``num_samples`` training points at each ridge >= 0; milliseconds."""
        log_kappa, share, log_risk, gamma = self.states(num_samples)
        log_ridge = log_kappa + (1 - share).log()
        wanted = ridges.clamp_min(math.exp(float(log_ridge[0]))).log()
        found = interpolate(wanted, log_ridge, log_kappa)
        return TailForecast(
            kappa=found.exp(),
            share=interpolate(found, log_kappa, share),
            gamma=interpolate(found, log_kappa, gamma),
            test=interpolate(found, log_kappa, log_risk).exp(),
            beyond=self.log_kappa[0] - found,
            tail_error=self.at(found)[2],
        )

    def states(self, num_samples: Number) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log kappa, s, log risk and gamma of every ridge that ``num_samples`` points can meet, ridge rising."""
        grid = torch.arange(float(self.log_kappa[0]) - 25, float(self.log_kappa[-1]), STEP, dtype=torch.float64)
        log_df1, log_bias, _ = self.at(grid)
        u = log_df1.exp() / num_samples
        share = u / (1 + interpolate(grid, self.log_kappa, self.excess) * u)
        gamma = interpolate(grid, self.log_kappa, self.spread) * u
        # s and gamma fall with kappa: the branch on which both are below 1 begins here
        first = int(((share < 1 - 1e-6) & (gamma < 1 - 1e-6)).to(torch.int8).argmax())
        log_risk = log_bias - (1 - gamma).log()
        return grid[first:], share[first:], log_risk[first:], gamma[first:]


def population_curve(readings: PoolReadings, pairs: PairReadings | None = None) -> PopulationCurve:
    """The curves that a pool resolves, and their power-law tails.

    Without ``pairs`` the law is that of Gaussian data. A power law whose exponent has the wrong sign (a kernel of
    finite rank, a target without tail) is cut to a constant.

    Raises ``ValueError`` where the pool resolves fewer than five of the ridges.
    """
    keep = (readings.share <= RESOLVED) & (readings.df1 > 0.5)
    if int(keep.sum()) < 5:
        raise ValueError(f"a pool of {readings.size} points resolves no part of this kernel; enlarge the pool")
    excess, spread = _gaussian_law(readings) if pairs is None else _measured_law(readings, pairs)
    share, log_kappa, gamma = readings.share[keep], readings.kappa[keep].log(), spread[keep] * readings.share[keep]
    log_df1 = readings.df1[keep].log() - (1 - excess[keep] * share).log()
    log_bias = readings.risk[keep].log() + (1 - gamma).log()
    tail = log_kappa <= log_kappa[0] + TAIL_DECADES * math.log(10)
    x = log_kappa[tail] - log_kappa[0]
    floor, exponent = _floor_and_power(x, log_bias[tail] - log_bias[0])
    straight = max(_slope(x, log_bias[tail]), 0.0)
    df1_slope = min(_slope(x, log_df1[tail]), 0.0)
    infinite = readings.df1[keep] / log_df1.exp()
    return PopulationCurve(
        log_kappa, log_df1, log_bias, excess[keep], spread[keep] * infinite, df1_slope, exponent, floor, straight
    )


def _gaussian_law(readings: PoolReadings) -> tuple[Tensor, Tensor]:
    """c/D_inf = 0 and w/D = df2/df1."""
    return torch.zeros_like(readings.df1), 1 - readings.d12 / readings.df1


def _measured_law(readings: PoolReadings, pairs: PairReadings) -> tuple[Tensor, Tensor]:
    """c/D_inf and w/D at each pool ridge, from the slopes of log kappa and log G in log n at fixed lam = n k.

    At fixed kappa lam changes by ``d log lam = -kappa_slope/K' d log n``, with
    K' = d log kappa/d log k = (M - D)/(M - D + d12). As lam = kappa (n - D) that makes
    ``dD/d log n = M + (M - D) kappa_slope/K'``, which the law says is ``D c/(n + c)``; and
    ``d log G/d log n = risk_slope - kappa_slope G'/K'`` is -w/(n - w), G' = d log G/d log k.
    """
    log_ridge, log_pair = readings.pool_ridge.log(), pairs.pool_ridge.log()
    rise = torch.gradient(readings.risk.log(), spacing=(log_ridge,))[0]
    rise, df1, d12 = (interpolate(log_pair, log_ridge, x) for x in (rise, readings.df1, readings.d12))
    left = readings.size - df1
    shift = pairs.kappa_slope * (1 + d12 / left)  # kappa_slope/K'
    # D can only seem to fall where few modes are learned: a fluctuation of O(1), which moves kappa by less than 1 %
    gain = ((readings.size + left * shift) / df1).clamp(0, 0.8)
    fall = (shift * rise - pairs.risk_slope).clamp_min(0)
    gain, spread = (interpolate(log_ridge, log_pair, x) for x in (gain, fall / (1 + fall) * readings.size / df1))
    return gain / readings.share, spread


def _floor_and_power(x: Float64[Tensor, " n"], y: Float64[Tensor, " n"]) -> tuple[float, float]:
    """``floor, c`` of the least-squares fit ``y = log(floor + (1 - floor) e^(c x))`` with y(0) = 0, floor in [0, 0.95].

    For each floor c follows from the least squares of ``log((e^y - floor)/(1 - floor)) = c x``.
    """
    floors = torch.linspace(0, 0.95, 96, dtype=torch.float64)[:, None]
    z = ((y.exp() - floors) / (1 - floors)).clamp_min(1e-9).log()
    powers = ((z * x).sum(1) / x.square().sum().clamp_min(1e-300)).clamp_min(0)
    misfit = ((floors + (1 - floors) * (powers[:, None] * x).exp()).log() - y).square().sum(1)
    best = int(misfit.argmin())
    return float(floors[best, 0]), float(powers[best])


def _slope(x: Tensor, y: Tensor) -> float:
    centred = x - x.mean()
    return float((centred * y).sum() / centred.square().sum()) if len(x) > 1 else 0.0


def interpolate(x: Float64[Tensor, " n"], at: Float64[Tensor, " k"], values: Float64[Tensor, " k"]) -> Tensor:
    """Linear between the rising ``at``, constant outside."""
    if len(at) == 1:
        return values.expand(x.shape)
    right = torch.searchsorted(at, x).clamp(1, len(at) - 1)
    weight = ((x - at[right - 1]) / (at[right] - at[right - 1])).clamp(0, 1)
    return values[right - 1] + weight * (values[right] - values[right - 1])
