"""Equivalence test for "measured equals predicted", with errors that respect shared seeds and shared data.

A *cell* is one setting (a width, a sample size, a ridge); each cell holds several networks. The networks
of a run are a two-way table: one initialisation seed serves many cells, and so does one draw of the
training set, so networks that share either are correlated. The mean over cells is therefore given the
error of its *clusters*.

Letters: c cells, g clusters (levels of a factor), d_i log(measured/predicted) of network i.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

# A two-sided 90 % interval inside +-tolerance is an equivalence test at 5 % (two one-sided tests).
CONFIDENCE = 0.90

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Equivalence:
    """Relative deviation over cells. All numbers are ratios minus one (0.05 is 5 %), NaN where unknown.

    deviation: geometric mean over cells, minus one; error: its standard error; low, high: its 90 % interval.
    rms, worst: over the deviations of the cells; rms_low, rms_high: 90 % interval of the rms, the lower end
    after removing what the scatter between networks alone would give. note: why the interval is missing or
    what it is conditional on.
    """

    deviation: float = math.nan
    error: float = math.nan
    low: float = math.nan
    high: float = math.nan
    rms: float = math.nan
    rms_low: float = math.nan
    rms_high: float = math.nan
    worst: float = math.nan
    cells: int = 0
    note: str = ""

    def verdict(self, tolerance: float) -> str:
        """``holds`` | ``fails`` | ``undetermined``; a missing interval (NaN) is always undetermined."""
        if -tolerance <= self.low and self.high <= tolerance and self.rms_high <= tolerance:
            return "holds"
        if self.low > tolerance or self.high < -tolerance or self.rms_low > tolerance:
            return "fails"
        return "undetermined"


def equivalence(ratios: pd.DataFrame, factors: Sequence[str], confidence: float = CONFIDENCE) -> Equivalence:
    """Deviation of ``ratios['log_ratio']`` from zero, averaged over ``ratios['cell']`` with equal weights.

    ``factors`` names the columns whose levels are independent of one another ('draw', 'seed'). The
    variance of a linear combination of cell means is, for each factor, the sum of squared cluster totals
    of the residuals (Cameron, Gelbach and Miller 2011, doi:10.1198/jbes.2010.07136, without subtracting
    the intersection: never negative, and conservative by at most a factor two). The quantile is Student's
    with Satterthwaite's degrees of freedom. A factor with one level is left out and named in ``note``:
    the interval is conditional on it.

    Says nothing about the draw of the pool or of the test points, which all networks share. O(rows +
    cells * levels).
    """
    if ratios.empty:
        return Equivalence(note="nothing measured")
    cell, num_cells = _codes(ratios["cell"])
    log_ratio = ratios["log_ratio"].to_numpy(np.float64)
    cell_mean = np.bincount(cell, log_ratio) / np.bincount(cell)
    relative = np.expm1(cell_mean)
    mean, rms = float(cell_mean.mean()), float(np.sqrt(np.mean(relative**2)))
    worst = float(relative[np.argmax(np.abs(relative))])
    levels, note = _independent_levels(ratios, factors)
    point = Equivalence(deviation=math.expm1(mean), rms=rms, worst=worst, cells=num_cells, note=note)
    clusters = [_Clusters.of(log_ratio - cell_mean[cell], cell, level) for level in levels]
    if not clusters or any(cluster.freedom < 1 for cluster in clusters):
        return replace(point, note=note or f"a cell has a single {' or '.join(factors)}")

    error, half = _error(clusters, np.full(num_cells, 1.0 / num_cells), confidence)
    # d rms / d cell_mean = x (1 + x) / (cells * rms), with x the relative deviation of the cell
    gradient = relative * (1 + relative) / (num_cells * rms) if rms > 0 else np.zeros(num_cells)
    _, rms_half = _error(clusters, gradient, confidence)
    scatter = sum(float(np.sum(cluster.totals**2)) for cluster in clusters) / num_cells
    beyond_scatter = math.sqrt(max(rms**2 - scatter, 0.0))
    rms_low = beyond_scatter - rms_half * rms / beyond_scatter if beyond_scatter else 0.0
    return replace(
        point,
        error=math.exp(mean) * error,
        low=math.expm1(mean - half),
        high=math.expm1(mean + half),
        rms_low=max(rms_low, 0.0),
        rms_high=rms + rms_half,
    )


@dataclass(frozen=True)
class _Clusters:
    """One factor: ``totals[c, g]`` sums the residuals of cell c at level g, each a share of its cell's mean.

    The variance of ``sum_c w_c mean_c`` is ``sum_g (sum_c w_c totals[c, g])^2``.
    """

    totals: FloatArray
    freedom: int

    @classmethod
    def of(cls, residual: FloatArray, cell: IntArray, level: IntArray) -> "_Clusters":
        present = np.zeros((cell.max() + 1, level.max() + 1), dtype=bool)
        present[cell, level] = True
        num_levels = present.sum(axis=1)
        totals = np.zeros(present.shape)
        np.add.at(totals, (cell, level), residual / np.bincount(cell)[cell])
        # residuals about a mean over L levels have (1 - 1/L) of the variance: undo it
        totals *= np.sqrt(num_levels / np.maximum(num_levels - 1, 1))[:, None]
        return cls(totals, int(num_levels.min()) - 1)


def _error(clusters: list[_Clusters], weights: FloatArray, confidence: float) -> tuple[float, float]:
    """Standard error and half width of the interval of ``sum_c weights_c * mean_c``."""
    variances = [float(np.sum((weights @ cluster.totals) ** 2)) for cluster in clusters]
    variance = sum(variances)
    if variance == 0:
        return 0.0, 0.0
    freedom = variance**2 / sum(v**2 / c.freedom for v, c in zip(variances, clusters, strict=True))
    error = math.sqrt(variance)
    return error, error * float(special.stdtrit(freedom, (1 + confidence) / 2))


def _codes(column: pd.Series) -> tuple[IntArray, int]:
    codes, levels = pd.factorize(column)
    return codes.astype(np.int64), len(levels)


def _independent_levels(ratios: pd.DataFrame, factors: Sequence[str]) -> tuple[list[IntArray], str]:
    """Cluster labels of the factors that vary, the coarser one only where one is nested in the other."""
    coded = {factor: _codes(ratios[factor]) for factor in factors}
    single = [factor for factor, (_, levels) in coded.items() if levels < 2]
    note = f"one {' and one '.join(single)} only" if single else ""
    varying = [(codes, levels) for codes, levels in coded.values() if levels >= 2]
    if len(varying) == 2:
        (first, num_first), (second, num_second) = varying
        num_pairs = len(np.unique(first * num_second + second))
        if num_pairs == max(num_first, num_second):  # nested: the finer factor adds no correlation of its own
            varying = [min(varying, key=lambda pair: pair[1])]
    return [codes for codes, _ in varying], note
