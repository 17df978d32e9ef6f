"""A pilot: one kernel on M labelled points, what it forecasts by itself, and how wrong it has been on its own parts.

The forecast is that of the pool's curve (`ridgescope.theory.tail`), with the law of its own points. Halves of the pool
are pilots too, and what they should forecast is known, the left-out risk of the whole pool: the mean of
log forecast/truth, at the same s = df1/P, is the theory error. Quarters and eighths join them in the map from risk to
accuracy.

The error bar of a log risk adds three squares: the sampling of the pool (a jackknife over its points), the theory
error, and the tail (anywhere between power laws with and without a floor).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.theory import PoolEstimator, pool_estimator
from ridgescope.theory.pairs import PairReadings, pair_readings
from ridgescope.theory.readings import PoolReadings, interpolate, pool_readings, ridge_grid
from ridgescope.theory.size_law import measured_bends
from ridgescope.theory.tail import PopulationCurve, population_curve
from ridgescope.train.errors import UserError

MIN_POOL = 96  # an eighth of it still has a curve
MAX_RATIO = 16  # P/M
PARTS = (2, 4, 8)
PAIR_STEP = 4  # of the grid of pool ridges: pairs of points are left out at every fourth, two a decade
LEVEL = 0.9  # of every interval
QUANTILE = NormalDist().inv_cdf((1 + LEVEL) / 2)
LEARNT = 0.95  # of the mean squared target: a best risk above it means that nothing is learned


@dataclass(frozen=True)
class PilotRisks:
    """At one P, for each ridge: log risk, its standard error, the part of it that is sampling, and where it stands."""

    log_risk: Float64[Tensor, " n"]
    se: Float64[Tensor, " n"]
    noise: Float64[Tensor, " n"]
    kappa: Float64[Tensor, " n"]
    share: Float64[Tensor, " n"]
    beyond: Float64[Tensor, " n"]


@dataclass(frozen=True)
class Accuracy:
    """``logit(accuracy) = coefficients . (1, log risk, log^2 risk)``, with the scatter of what it was fitted to."""

    coefficients: Float64[Tensor, " three"]
    scatter: float

    def at(self, log_risk: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
        return torch.sigmoid(_powers(log_risk) @ self.coefficients)


@dataclass(frozen=True)
class Pilot:
    """``readings`` of the whole pool, ``parts`` of its parts by their number, the pool's curve, the theory error of
    halves at each s, the map to accuracy (None where targets are no classes), and the pool's own eigenvalues and
    target powers."""

    readings: PoolReadings
    parts: dict[int, list[PoolReadings]]
    curve: PopulationCurve
    error_at: Float64[Tensor, " s"]
    error: Float64[Tensor, " s"]
    accuracy: Accuracy | None
    target_power: float
    scale: float
    spectrum: tuple[Tensor, Tensor]

    @property
    def size(self) -> int:
        return self.readings.size

    def risks(self, num_samples: int | float, ridges: Float64[Tensor, " n"]) -> PilotRisks:
        """Forecast at P = ``num_samples``, on either side of M."""
        found = self.curve.forecast(num_samples, ridges)
        doublings = max(math.log2(num_samples / self.size), 0.0)
        theory = min(doublings, 1.0) * interpolate(found.share, self.error_at, self.error)
        order = self.readings.kappa.argsort()
        sampling = interpolate(found.kappa.log(), self.readings.kappa[order].log(), self.readings.risk_se[order])
        # no theory is exact: a per cent for each doubling beyond the one that was measured on halves
        beyond = 0.01 * max(doublings - 1, 0.0)
        se = (sampling**2 + theory**2 + found.tail_error**2 / 3 + beyond**2).sqrt()  # a uniform law between the tails
        return PilotRisks(found.test.log(), se, sampling, found.kappa, found.share, found.beyond)

    @property
    def noise_exceeds_signal(self) -> bool:
        """The best left-out risk is hardly below the power of the target."""
        return float(self.readings.risk.min()) > LEARNT * self.target_power


def make_pilot(gram: Float64[Tensor, "m m"], targets: Float64[Tensor, "m c"]) -> Pilot:
    """Decompose a pool and its parts, leave out pairs: 1.3 ``eigh`` of M points and about 20 products of M x M.

    ``gram`` is the unnormalised kernel, ``targets`` (M, C) one row per point, both in random order of the points.

    Raises ``UserError`` for fewer than `MIN_POOL` points, points that are equal to the kernel, and targets without
    power; ``ValueError`` for what is no kernel.
    """
    size = len(gram)
    if size < MIN_POOL:
        raise UserError(f"a pilot of {size} points cannot be checked on its own parts; use at least {MIN_POOL}")
    power = float(targets.square().sum() / len(targets))
    if not power > 0:
        raise UserError("the targets are 0 everywhere; pass labels that differ from their mean")
    require_distinct(gram)
    whole = pool_estimator(gram, targets)
    grid = ridge_grid(whole)
    readings, pairs = _read(whole, grid)
    halves = [_read(part, grid) for part in _parts(gram, targets, 2)]
    bends = measured_bends((readings, pairs), halves)
    parts = {number: [pool_readings(part, grid) for part in _parts(gram, targets, number)] for number in PARTS[1:]}
    parts = {2: [half for half, _ in halves], **parts}
    forecasts = torch.stack([population_curve(*half, bends).forecast(size, grid).test for half in halves])
    kept = (readings.share > 1e-3) & (readings.share < 0.995)
    order = readings.share[kept].argsort()
    return Pilot(
        readings,
        parts,
        population_curve(readings, pairs, bends),
        error_at=readings.share[kept][order],
        error=(forecasts / readings.risk).log().mean(0)[kept][order],
        accuracy=_accuracy([readings, *(part for some in parts.values() for part in some)]),
        target_power=power,
        scale=float(gram.diagonal().mean()),
        spectrum=(whole.eigenvalues, whole.target_power),
    )


def _parts(gram: Tensor, targets: Tensor, number: int) -> Iterator[PoolEstimator]:
    size = len(gram) // number
    for i in range(number):
        cut = slice(i * size, (i + 1) * size)
        yield pool_estimator(gram[cut, cut].contiguous(), targets[cut])


def _read(pool: PoolEstimator, grid: Tensor) -> tuple[PoolReadings, PairReadings]:
    """Readings, with the jackknife's error of the risk, and what leaving out pairs says."""
    readings = pool_readings(pool, grid)
    pairs = pair_readings(pool, grid[_pair_places(readings)])
    error = interpolate(grid.log(), pairs.pool_ridge.log(), pairs.risk_se)
    return replace(readings, risk_se=error), pairs


def _pair_places(readings: PoolReadings) -> Tensor:
    """Every fourth ridge that the pool resolves; of those at which nothing changes any more only the smallest."""
    places = ((readings.df1 > 0.5) & (readings.share < 0.95)).nonzero()[:, 0][::PAIR_STEP]
    columns = torch.stack([readings.df1[places].log(), readings.risk[places].log()])
    changed = ((columns - columns[:, :1]).abs() > 0.005).any(0)
    changed[0] = True
    return places[changed]


def _accuracy(parts: Sequence[PoolReadings]) -> Accuracy | None:
    """Weighted by the size of each part; only where left-out predictions are neither all right nor all wrong."""
    rows = []
    for part in parts:
        kept = (part.correct > 0) & (part.correct < 1) & (part.share > 0.01) & (part.share < 0.995)
        weight = torch.full_like(part.risk[kept], float(part.size))
        rows.append(torch.stack([part.risk[kept].log(), torch.logit(part.correct[kept]), weight]))
    log_risk, logit, weight = torch.cat(rows, 1)
    if len(log_risk) < 10:
        return None
    design, root = _powers(log_risk), weight.sqrt()
    coefficients = torch.linalg.lstsq(design * root[:, None], (logit * root)[:, None]).solution[:, 0]
    scatter = ((design @ coefficients - logit).square() * weight).sum() / weight.sum()
    return Accuracy(coefficients, float(scatter.sqrt()))


def _powers(x: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(x), x, x**2], 1)


def require_distinct(gram: Float64[Tensor, "m m"]) -> None:
    """``UserError`` where two points are the same to the kernel: leave-one-out would then see its own answer."""
    norms = gram.diagonal()
    gap = norms[:, None] + norms - 2 * gram
    same = (gap <= 1e-10 * (norms[:, None] + norms)).triu(1).nonzero()
    if len(same):
        i, j = same[0].tolist()
        raise UserError(
            f"{len(same)} pairs of pilot points are equal to the kernel, the first {i} and {j}: left-out risks would "
            "leak; keep one of each"
        )


def require_disjoint(pool: Tensor, test: Tensor) -> None:
    """``UserError`` where a test point (rows of any shape) is also a pilot point, bit by bit."""
    seen = {row.tobytes() for row in pool.flatten(1).numpy()}
    leaking = [i for i, row in enumerate(test.flatten(1).numpy()) if row.tobytes() in seen]
    if leaking:
        raise UserError(
            f"{len(leaking)} test points are also pilot points, the first is test point {leaking[0]}; remove them"
        )
