"""The population seen by a pool, continued beyond it: what P > M samples would give.

A pool of M points gives, at every pool ridge k, its kappa, D = df1 and left-out risk G (`ridgescope.theory.pool`), down
to the kappa that M points resolve. How D and G change with the number n of points at a fixed kappa is the law

    D = D_inf/(1 + c u + c' u^2),        G = B/(1 - w u + w' u^2),        u = D_inf/n,

in which Gaussian data have w D_inf = df2 = D + dD/dlog kappa and no c, c', w'. Images do: D is less than D_inf by 10 %
at s near 1, and w is 0.6 to 1.7 of that. All are therefore measured (`ridgescope.theory.size_law`). From them any P and
ridge follow by ``lam = kappa (1 - D/P)`` and ``E = G`` at n = P. Below the smallest kappa D_inf and B go on as power
laws, fitted to the last decade that is resolved: eta_k ~ k^-a makes D ~ kappa^(-1/a), a power-law target makes
B = s2 + A kappa^b. Derived in docs/forecast.md.

Letters: M pool points, P samples, C outputs, K pool ridges, s = D/points, u = D_inf/points.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory._checks import Number
from ridgescope.theory.pairs import PairReadings
from ridgescope.theory.readings import PoolReadings, interpolate
from ridgescope.theory.size_law import Bends, coefficients, gaussian_slopes, measured_slopes

TAIL_DECADES = 1.0  # of kappa, from the smallest that is resolved, to which the power laws are fitted
RESOLVED = 0.9  # share of a pool's degrees of freedom up to which its readings are used
STEP = 0.02  # of log kappa on the grid where curves are inverted


@dataclass(frozen=True)
class TailForecast:
    """``test`` risk at P samples and ridge lam, s = D/P, ``gamma`` = 1 - B/E; ``beyond`` = log of the smallest kappa
    that the pool resolves over the wanted one: at most 0 where nothing but the formula is extrapolated; ``tail_error``
    of log risk, half the distance of the two tails that the readings allow."""

    kappa: Float64[Tensor, " n"]
    share: Float64[Tensor, " n"]
    gamma: Float64[Tensor, " n"]
    test: Float64[Tensor, " n"]
    beyond: Float64[Tensor, " n"]
    tail_error: Float64[Tensor, " n"]


@dataclass(frozen=True)
class PopulationCurve:
    """log D_inf and log B against rising log kappa, with power laws below the first, and c ("excess"), c'
    ("excess_bend"), w ("spread") and w' ("spread_bend"), which stay as they are at the first.

    ``df1_slope`` = d log D_inf/d log kappa of the tail. B_0 (kappa/kappa_0)^``straight`` is one tail of B, which has no
    floor; B_0 (floor + (1 - floor) (kappa/kappa_0)^bias_slope) the other, whose floor the bend of the last decade asks
    for if all of it is noise. The truth lies between; the forecast is their geometric mean.
    """

    log_kappa: Float64[Tensor, " k"]
    log_df1: Float64[Tensor, " k"]
    log_bias: Float64[Tensor, " k"]
    excess: Float64[Tensor, " k"]
    excess_bend: Float64[Tensor, " k"]
    spread: Float64[Tensor, " k"]
    spread_bend: Float64[Tensor, " k"]
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
        c, c2, w, w2 = (
            interpolate(grid, self.log_kappa, x) for x in (self.excess, self.excess_bend, self.spread, self.spread_bend)
        )
        share = u / (1 + c * u + c2 * u**2)
        gamma = w * u - w2 * u**2
        # Towards small kappa both grow, until one reaches 1 or turns because the second order outweighs the first. They
        # may come back below 1 beyond that, at kappas that belong to no ridge
        met = (share < 1 - 1e-6) & (gamma < 1 - 1e-6) & (c2 * u**2 < 1) & (2 * w2 * u < w.clamp_min(1e-300))
        first = int((~met).nonzero().max()) + 1 if not bool(met.all()) else 0
        log_risk = log_bias - (1 - gamma).log()
        return grid[first:], share[first:], log_risk[first:], gamma[first:]


def population_curve(
    readings: PoolReadings, pairs: PairReadings | None = None, bends: Bends | None = None
) -> PopulationCurve:
    """The curves that a pool resolves, and their power-law tails.

    Without ``pairs`` the law is that of Gaussian data, without ``bends`` of first order. A power law whose exponent has
    the wrong sign (a kernel of finite rank, a target without tail) is cut to a constant.

    Raises ``ValueError`` where the pool resolves fewer than five of the ridges.
    """
    keep = (readings.share <= RESOLVED) & (readings.df1 > 0.5)
    if int(keep.sum()) < 5:
        raise ValueError(f"a pool of {readings.size} points resolves no part of this kernel; enlarge the pool")
    bends = bends or Bends()
    slopes = gaussian_slopes(readings) if pairs is None else measured_slopes(readings, pairs)
    c, w = (x[keep] for x in coefficients(slopes, bends, readings.share))
    z, log_kappa = readings.share[keep], readings.kappa[keep].log()
    log_df1 = readings.df1[keep].log() + (1 + c * z + bends.df1 * c * z**2).log()
    log_bias = readings.risk[keep].log() + (1 - w * z + bends.risk * w * z**2).log()
    tail = log_kappa <= log_kappa[0] + TAIL_DECADES * math.log(10)
    x = log_kappa[tail] - log_kappa[0]
    floor, exponent = _floor_and_power(x, log_bias[tail] - log_bias[0])
    straight = max(_slope(x, log_bias[tail]), 0.0)
    df1_slope = min(_slope(x, log_df1[tail]), 0.0)
    unit = readings.df1[keep] / log_df1.exp()  # z/u
    laws = c * unit, bends.df1 * c * unit**2, w * unit, bends.risk * w * unit**2
    return PopulationCurve(log_kappa, log_df1, log_bias, *laws, df1_slope, exponent, floor, straight)


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
