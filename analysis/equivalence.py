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
    what it is conditional on. log_error, freedom: of the mean of the logarithms; rms_error, rms_freedom: of the
    rms; beyond_scatter: the rms without the scatter; levels: independent repetitions (seeds or draws) of a cell.
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
    log_error: float = math.nan
    freedom: float = math.nan
    rms_error: float = math.nan
    rms_freedom: float = math.nan
    beyond_scatter: float = math.nan
    levels: int = 0

    def p_values(self, tolerance: float, test: str = "equivalence") -> tuple[float, float]:
        """Evidence against "the deviation is beyond ``tolerance``" and against "it is within": (p_holds, p_fails).

        ``mean``: two one-sided t tests, and their converse. ``equivalence``: the rms over cells must pass as well, and
        either may fail (Bonferroni over the two). ``at_most``: only an excess counts. 1 where there is no error.
        """
        if not math.isfinite(self.log_error):
            return 1.0, 1.0
        mean = math.log1p(self.deviation)
        above = _tail(mean - math.log1p(tolerance), self.log_error, self.freedom)
        below = _tail(math.log1p(-tolerance) - mean, self.log_error, self.freedom)
        if test == "at_most":
            return 1 - above, above
        holds, fails = max(1 - above, 1 - below), min(above, below)
        if test == "equivalence" and self.cells > 1:
            holds = max(holds, _tail(tolerance - self.rms, self.rms_error, self.rms_freedom))
            error = self.rms_error * self.rms / self.beyond_scatter if self.beyond_scatter else math.inf
            fails = min(1.0, 2 * min(fails, _tail(self.beyond_scatter - tolerance, error, self.rms_freedom)))
        return holds, fails

    def verdict(self, tolerance: float, test: str = "equivalence", level: float = 0.05) -> str:
        """``holds`` | ``fails`` | ``undetermined`` for one claim alone; without an interval always undetermined."""
        return decide(*self.p_values(tolerance, test), level)

    def needed(self, tolerance: float, test: str = "equivalence", level: float = 0.05, most: int = 1000) -> int | None:
        """About how many seeds (and draws) a cell would need for a decision if the deviation stays what it is.

        None where more than ``most`` would be needed, or nothing is known of the scatter.
        """
        if self.levels < 2 or not math.isfinite(self.log_error):
            return None
        counts = np.unique(np.geomspace(self.levels + 1, most, 200).astype(int))
        for count in counts:
            shrink, freedom = math.sqrt(self.levels / count), self.freedom * (count - 1) / (self.levels - 1)
            beyond = math.sqrt(max(self.beyond_scatter, 0.0) ** 2)
            rms = math.sqrt(beyond**2 + max(self.rms**2 - beyond**2, 0.0) * shrink**2)
            later = replace(
                self,
                log_error=self.log_error * shrink,
                freedom=freedom,
                rms=rms,
                rms_error=self.rms_error * shrink,
                rms_freedom=self.rms_freedom * (count - 1) / (self.levels - 1),
            )
            if later.verdict(tolerance, test, level) != "undetermined":
                return int(count)
        return None


def decide(p_holds: float, p_fails: float, level: float) -> str:
    """The verdict that two p-values, corrected for multiplicity or not, support at ``level``."""
    return "holds" if p_holds <= level else "fails" if p_fails <= level else "undetermined"


def holm(p_values: Sequence[float]) -> FloatArray:
    """p-values adjusted so that any wrong rejection among all has at most the level's probability (Holm 1979)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _tail(distance: float, error: float, freedom: float) -> float:
    """One-sided p-value of seeing ``distance`` beyond a boundary, in Student's t; exact where there is no scatter."""
    if error == 0:
        return 0.0 if distance > 0 else 1.0
    return float(special.stdtr(freedom, -distance / error))


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
    levels, note = independent_levels(ratios, factors)
    point = Equivalence(deviation=math.expm1(mean), rms=rms, worst=worst, cells=num_cells, note=note)
    clusters = [_Clusters.of(log_ratio - cell_mean[cell], cell, level) for level in levels]
    if not clusters or any(cluster.freedom < 1 for cluster in clusters):
        return replace(point, note=note or f"a cell has a single {' or '.join(factors)}")

    error, freedom = _error(clusters, np.full(num_cells, 1.0 / num_cells))
    half = half_width(error, freedom, confidence)
    # d rms / d cell_mean = x (1 + x) / (cells * rms), with x the relative deviation of the cell
    gradient = relative * (1 + relative) / (num_cells * rms) if rms > 0 else np.zeros(num_cells)
    rms_error, rms_freedom = _error(clusters, gradient)
    rms_half = half_width(rms_error, rms_freedom, confidence)
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
        log_error=error,
        freedom=freedom,
        rms_error=rms_error,
        rms_freedom=rms_freedom,
        beyond_scatter=beyond_scatter,
        levels=min(cluster.freedom for cluster in clusters) + 1,
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


def _error(clusters: list[_Clusters], weights: FloatArray) -> tuple[float, float]:
    """Standard error of ``sum_c weights_c * mean_c``, and Satterthwaite's degrees of freedom."""
    variances = [float(np.sum((weights @ cluster.totals) ** 2)) for cluster in clusters]
    variance = sum(variances)
    if variance == 0:
        return 0.0, float(min(cluster.freedom for cluster in clusters))
    freedom = variance**2 / sum(v**2 / c.freedom for v, c in zip(variances, clusters, strict=True))
    return math.sqrt(variance), freedom


def half_width(error: float, freedom: float, confidence: float) -> float:
    """Of a two-sided Student interval."""
    return error * float(special.stdtrit(freedom, (1 + confidence) / 2))


def _codes(column: pd.Series) -> tuple[IntArray, int]:
    codes, levels = pd.factorize(column)
    return codes.astype(np.int64), len(levels)


def independent_levels(ratios: pd.DataFrame, factors: Sequence[str]) -> tuple[list[IntArray], str]:
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
