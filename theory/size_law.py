"""How D and G of n points change with n at a fixed kappa, read from a pool and from its halves.

To second order in 1/n, with z = D_M/n and D_M the D of the whole pool at that kappa,

    D = D_inf/(1 + c z + c' z^2),        G = B/(1 - w z + w' z^2).

Leaving out two points (`ridgescope.theory.pairs`) gives both slopes in log n at n = M,

    gain = d log D/d log n = (c z + 2 c' z^2)/(1 + c z + c' z^2)
    fall = -d log G/d log n = (w z - 2 w' z^2)/(1 - w z + w' z^2),

one number for two coefficients. Halves of the pool give the slopes at twice the z; what they ask for in c'/c and w'/w
("bends"), over every kappa that they resolve, is one number for each pool. On images w'/w is about 0.1: at fixed
kappa the w of first order is 10 to 15 % larger at twice the points. Without it B is 2 % too large where s nears 1,
which is where the tail begins.

Gaussian data have c = c' = w' = 0 and w D_M = df2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory.pairs import PairReadings
from ridgescope.theory.readings import PoolReadings, interpolate

HALF_RESOLVES = 0.9  # s of a half, up to which it is compared
LARGEST = 0.25  # bend: beyond it G would fall with fewer points somewhere at z < 2, half the points at s = 1


@dataclass(frozen=True)
class Slopes:
    """``gain`` and ``fall`` at each pool ridge of a pool's readings."""

    gain: Float64[Tensor, " k"]
    fall: Float64[Tensor, " k"]


@dataclass(frozen=True)
class Bends:
    """c'/c and w'/w of a pool."""

    df1: float = 0.0
    risk: float = 0.0


def gaussian_slopes(readings: PoolReadings) -> Slopes:
    gamma = (1 - readings.d12 / readings.df1) * readings.share
    return Slopes(torch.zeros_like(gamma), gamma / (1 - gamma))


def measured_slopes(readings: PoolReadings, pairs: PairReadings) -> Slopes:
    """From the slopes of log kappa and log G in log n at fixed lam = n k.

    At fixed kappa lam changes by ``d log lam = -kappa_slope/K' d log n``, with
    K' = d log kappa/d log k = (M - D)/(M - D + d12). As lam = kappa (n - D) that makes
    ``dD/d log n = M + (M - D) kappa_slope/K'``, and ``d log G/d log n = risk_slope - kappa_slope G'/K'`` with
    G' = d log G/d log k.
    """
    log_ridge, log_pair = readings.pool_ridge.log(), pairs.pool_ridge.log()
    rise = torch.gradient(readings.risk.log(), spacing=(log_ridge,))[0]
    rise, df1, d12 = (interpolate(log_pair, log_ridge, x) for x in (rise, readings.df1, readings.d12))
    left = readings.size - df1
    shift = pairs.kappa_slope * (1 + d12 / left)  # kappa_slope/K'
    # D can only seem to fall where few modes are learned: a fluctuation of O(1), which moves kappa by less than 1 %
    gain = ((readings.size + left * shift) / df1).clamp(0, 0.8)
    fall = (shift * rise - pairs.risk_slope).clamp_min(0)
    # the ratio to s is what varies slowly with the ridge
    gain = interpolate(log_ridge, log_pair, gain / (df1 / readings.size)) * readings.share
    gamma = interpolate(log_ridge, log_pair, fall / (1 + fall) * readings.size / df1) * readings.share
    return Slopes(gain, gamma / (1 - gamma))


def measured_bends(
    whole: tuple[PoolReadings, PairReadings], halves: Sequence[tuple[PoolReadings, PairReadings]]
) -> Bends:
    """Least squares over all kappa at which the halves have s <= `HALF_RESOLVES`; no bend where there is none."""
    readings, own = whole[0], measured_slopes(*whole)
    log_kappa = readings.kappa.log()
    theirs = [measured_slopes(*half) for half in halves]
    gain, fall, share = (
        torch.stack(
            [interpolate(log_kappa, half.kappa.log(), x) for (half, _), x in zip(halves, some, strict=True)]
        ).mean(0)
        for some in ([s.gain for s in theirs], [s.fall for s in theirs], [half.share for half, _ in halves])
    )
    kept = (share <= HALF_RESOLVES) & (readings.df1 > 5)
    mine, theirs_mean = Slopes(own.gain[kept], own.fall[kept]), Slopes(gain[kept], fall[kept])
    return bends_of(mine, theirs_mean, readings.share[kept])


def bends_of(whole: Slopes, half: Slopes, z: Float64[Tensor, " k"]) -> Bends:
    """The bends with which the slopes at z and, of half the points, at 2 z give the same c and w, in least squares.

    c' < 0 is cut to 0: a D that fell with n would have no inverse.

    ``c = gain/(z ((1 - gain) + bend z (2 - gain)))`` and ``w = fall/(z ((1 + fall) - bend z (2 + fall)))``.
    """
    y = 2 * z
    df1 = _ratio(
        half.gain * z * (1 - whole.gain) - whole.gain * y * (1 - half.gain),
        whole.gain * y**2 * (2 - half.gain) - half.gain * z**2 * (2 - whole.gain),
    )
    risk = _ratio(
        whole.fall * y * (1 + half.fall) - half.fall * z * (1 + whole.fall),
        whole.fall * y**2 * (2 + half.fall) - half.fall * z**2 * (2 + whole.fall),
    )
    return Bends(min(max(df1, 0.0), LARGEST), min(max(risk, -LARGEST), LARGEST))


def _ratio(y: Tensor, x: Tensor) -> float:
    return float((x * y).sum() / x.square().sum().clamp_min(1e-300))


def coefficients(slopes: Slopes, bends: Bends, z: Float64[Tensor, " k"]) -> tuple[Tensor, Tensor]:
    """c and w."""
    c = slopes.gain / (z * ((1 - slopes.gain) + bends.df1 * z * (2 - slopes.gain)))
    w = slopes.fall / (z * ((1 + slopes.fall) - bends.risk * z * (2 + slopes.fall)))
    return c, w
