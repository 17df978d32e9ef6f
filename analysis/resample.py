"""Numbers made of many cells, with intervals that know which cells share a seed or a training set.

A statistic is any function of the cells' means: a slope, the place of a crossing, the height of a peak. Levels of each
factor (draws, seeds) are resampled for all cells at once; the variances of the factors add, as in ``equivalence``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ridgescope.analysis.equivalence import CONFIDENCE, FloatArray, IntArray, half_width, independent_levels

LOST = 0.1  # share of resamples without a value beyond which the statistic has no interval


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error and 90 % interval (Student's t); NaN where there is none."""

    value: float
    se: float
    low: float
    high: float


def resampled(
    table: pd.DataFrame,
    cells: Sequence[str],
    columns: Sequence[str],
    statistic: Callable[[FloatArray], FloatArray],
    *,
    factors: Sequence[str] = ("draw", "seed"),
    replicates: int = 200,
    seed: int = 0,
) -> list[Estimate]:
    """``statistic`` of the means of ``columns`` over each of the ``cells``: from (replicates, columns, cells), cells
    sorted, it makes (replicates, numbers), NaN where there is none.

    Rows with a missing value are left out. A factor that has one level is conditioned on; nested factors count once.
    Resampling n levels gives (n - 1)/n of the variance, which is undone.
    """
    rows = table[[*cells, *columns, *factors]].dropna(subset=[*columns])
    cell = rows.groupby(list(cells), sort=True).ngroup().to_numpy().astype(np.int64)
    values = rows[list(columns)].to_numpy(np.float64).T
    number = int(cell.max()) + 1 if len(cell) else 0
    whole = np.zeros(len(cell), np.int64)
    point = statistic(_means(values, cell, whole, np.ones((1, 1)), number))[0]
    rng = np.random.default_rng(seed)
    parts, freedom = [], []
    for level in independent_levels(rows, factors)[0] if len(rows) else []:
        levels = int(level.max()) + 1
        draws = rng.multinomial(levels, np.full(levels, 1 / levels), size=replicates).astype(np.float64)
        found = statistic(_means(values, cell, level, draws, number))
        lost = np.isnan(found).mean(axis=0) > LOST
        variance = np.nanvar(np.where(lost, 0.0, found), axis=0) * levels / (levels - 1)
        parts.append(np.where(lost, math.nan, variance))
        freedom.append(levels - 1)
    return [_estimate(value, [float(p[i]) for p in parts], freedom) for i, value in enumerate(point.tolist())]


def _estimate(value: float, parts: list[float], freedom: list[int]) -> Estimate:
    variance = sum(parts)
    if math.isnan(value) or not parts or math.isnan(variance):
        return Estimate(value, math.nan, math.nan, math.nan)
    se = math.sqrt(variance)
    satterthwaite = variance**2 / sum(p**2 / f for p, f in zip(parts, freedom, strict=True)) if variance else 1.0
    half = half_width(se, satterthwaite, CONFIDENCE)
    return Estimate(value, se, value - half, value + half)


def _means(values: FloatArray, cell: IntArray, level: IntArray, weights: FloatArray, number: int) -> FloatArray:
    """(replicates, columns, cells) with ``weights`` (replicates, levels); NaN for a cell that a resample left empty."""
    place, levels = level * number + cell, weights.shape[1]

    def summed(row: FloatArray) -> FloatArray:
        return np.asarray(weights @ np.bincount(place, row, levels * number).reshape(levels, number), np.float64)

    total = summed(np.ones(len(cell)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([summed(row) / total for row in values], axis=1)
