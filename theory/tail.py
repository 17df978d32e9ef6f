"""The population seen by a pool, continued beyond it: what P > M samples would give.

A pool of M points gives, at every pool ridge k, one point of the curves df1(kappa) and B(kappa) = b + s2
(`ridgescope.theory.pool`), down to the kappa that M points resolve. From them any P and ridge follow by
``lam = kappa (1 - df1/P)`` and ``E = B/(1 - df2/P)``, ``df2 = df1 + d df1/d log kappa``. Below that kappa both curves
go on as power laws, fitted to the last decade that is resolved: eta_k ~ k^-a makes df1 ~ kappa^(-1/a), and a
power-law target makes B = s2 + A kappa^c. Derived in docs/forecast.md.

Real kernels are not Gaussian. With few points left for each learned mode (s = df1/M near 1) they have less df1 at a
kappa than the universal law, by 8 % at s = 1 on images, while the risk at that kappa follows the law. The factor
d(s) = df1/universal depends on s and hardly on M, so it is measured on sub-pools, whose kappa the whole pool resolves
with more points, and is taken out on the way in and put back on the way out.

Letters: M pool points, P samples, C outputs, K pool ridges, s = df1/points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory._checks import Number
from ridgescope.theory.pool import PoolEstimator

TAIL_DECADES = 1.0  # of kappa, from the smallest that is resolved, to which the power laws are fitted
RESOLVED = 0.9  # share of a pool's degrees of freedom up to which its readings are used
STEP = 0.02  # of log kappa on the grid where curves are inverted
CALIBRATION = torch.linspace(0, 1, 21, dtype=torch.float64)  # values of s at which d is kept


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
    """``test`` risk at P samples and ridge lam, s = df1/P; ``beyond`` = log of the smallest kappa that the pool
    resolves over the wanted one: at most 0 where nothing but the formula is extrapolated."""

    kappa: Float64[Tensor, " n"]
    share: Float64[Tensor, " n"]
    gamma: Float64[Tensor, " n"]
    test: Float64[Tensor, " n"]
    beyond: Float64[Tensor, " n"]


@dataclass(frozen=True)
class PopulationCurve:
    """log df1 and log B against rising log kappa, with power laws below the first.

    ``df1_slope`` = d log df1/d log kappa of the tail; there B = B_0 (floor + (1 - floor) (kappa/kappa_0)^bias_slope);
    ``straight`` is the exponent that the fit without a floor has, the other end of what the readings allow.
    ``log_defect``: log d(s) at `CALIBRATION`.
    """

    log_kappa: Float64[Tensor, " k"]
    log_df1: Float64[Tensor, " k"]
    log_bias: Float64[Tensor, " k"]
    df1_slope: float
    bias_slope: float
    floor: float
    straight: float
    log_defect: Float64[Tensor, " s"]

    @property
    def spectrum_exponent(self) -> float:
        """a of eta_k ~ k^-a, from df1 ~ kappa^(-1/a)."""
        return -1 / self.df1_slope if self.df1_slope < 0 else math.inf

    def at(self, log_kappa: Float64[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        """log df1 of the universal law, and log B."""
        below = (log_kappa - self.log_kappa[0]).clamp_max(0)
        df1 = interpolate(log_kappa, self.log_kappa, self.log_df1) + self.df1_slope * below
        fall = (self.floor + (1 - self.floor) * (self.bias_slope * below).exp()).log()
        return df1, interpolate(log_kappa, self.log_kappa, self.log_bias) + fall

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
        )

    def states(self, num_samples: Number) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log kappa, s, log risk and gamma of every ridge that ``num_samples`` points can meet, ridge rising."""
        grid = torch.arange(float(self.log_kappa[0]) - 25, float(self.log_kappa[-1]), STEP, dtype=torch.float64)
        log_df1, log_bias = self.at(grid)
        df1 = log_df1.exp()
        d12 = (-torch.gradient(df1, spacing=STEP)[0]).clamp_min(0)
        # s = df1 d(s)/P
        share = interpolate(df1 / num_samples, CALIBRATION * (-self.log_defect).exp(), CALIBRATION)
        first = int((share < 1 - 1e-6).to(torch.int8).argmax())  # s falls with kappa: the branch s < 1 begins here
        gamma = (df1 - d12) / num_samples
        log_risk = log_bias - (1 - gamma).clamp_min(1e-9).log()
        return grid[first:], share[first:], log_risk[first:], gamma[first:]


def population_curve(readings: PoolReadings, log_defect: Float64[Tensor, " s"] | None = None) -> PopulationCurve:
    """The curves that a pool resolves, and their power-law tails.

    ``log_defect`` is log d(s) at `CALIBRATION`, by default 0: the universal law. A power law whose exponent has the
    wrong sign (a kernel of finite rank, a target without tail) is cut to a constant.

    Raises ``ValueError`` where the pool resolves fewer than five of the ridges.
    """
    defect = torch.zeros_like(CALIBRATION) if log_defect is None else log_defect
    keep = (readings.share <= RESOLVED) & (readings.df1 > 0.5)
    if int(keep.sum()) < 5:
        raise ValueError(f"a pool of {readings.size} points resolves no part of this kernel; enlarge the pool")
    share, log_kappa = readings.share[keep], readings.kappa[keep].log()
    log_df1 = readings.df1[keep].log() - interpolate(share, CALIBRATION, defect)
    slope = torch.gradient(log_df1, spacing=(log_kappa,))[0]
    log_bias = readings.risk[keep].log() + (1 - log_df1.exp() * (1 + slope) / readings.size).log()
    tail = log_kappa <= log_kappa[0] + TAIL_DECADES * math.log(10)
    x = log_kappa[tail] - log_kappa[0]
    floor, exponent = _floor_and_power(x, log_bias[tail] - log_bias[0])
    straight = max(_slope(x, log_bias[tail]), 0.0)
    df1_slope = min(_slope(x, log_df1[tail]), 0.0)
    return PopulationCurve(log_kappa, log_df1, log_bias, df1_slope, exponent, floor, straight, defect)


def df1_defect(whole: PoolReadings, parts: Sequence[PoolReadings]) -> Float64[Tensor, " s"]:
    """log d(s) at `CALIBRATION`: df1 of sub-pools over what the whole pool's curve has at their kappa.

    The whole pool reads those kappa at a smaller share of its own points, where d is closer to 1; its own d is taken
    out by further rounds.
    """
    defect = torch.zeros_like(CALIBRATION)
    for _ in range(4):
        curve = population_curve(whole, defect)
        rows = []
        for part in parts:
            order = part.share.argsort()
            order = order[part.df1[order] > 0.5]
            ratio = part.df1[order].log() - curve.at(part.kappa[order].log())[0]
            rows.append(interpolate(CALIBRATION, part.share[order], ratio))
        found = torch.stack(rows).mean(0)
        defect = (found - found[0]).clamp_max(0).cummin(0).values  # s d^-1 must rise with s
    return defect


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
