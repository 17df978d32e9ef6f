"""How risks scale along a sweep: exponents in P and N, the onset of the variance-limited regime, double descent.

    in P         slope of log test risk in log P, of networks, their kernels and infinite width, beside the theory's
    in N         finite-width excess, risk over that of the infinite-width kernel on the same training set minus one, as
                 A N^-beta; 1/2 of the risk is due to the width where it is 1
    onset        P_1/2, the sample size at which half of the risk is due to finite width (excess 1), per width; its
                 exponent in N (arXiv:2212.12147 finds sqrt(N) for trained networks)
    descent      a curve that rises and falls again, along N or P: height of the peak over the higher of the two lowest
                 points beside it

All with intervals over seeds and draws (``resample``). Letters: P samples, N width.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ridgescope.analysis.cells import setting_labels, usable
from ridgescope.analysis.equivalence import FloatArray, IntArray
from ridgescope.analysis.resample import Estimate, resampled

SCALING_COLUMNS = (
    "model", "kind", "who", "axis", "width", "P", "ridge", "value", "se", "low", "high", "predicted", "predicted_low",
    "predicted_high", "at", "points",
)  # fmt: skip

PREDICTED_SIZE = {"network": ("network_test", "block_pool_test"), "kernel": ("krr_test", "block_pool_test")}
MEASURED = {"network": "network_test", "kernel": "krr_test", "last layer": "krr_last_test"}
CURVES = MEASURED | {"finite-width law": "block_test"}
LEAST = 3  # points of a slope or a curve
BUMP = 0.05  # a peak counts from this height on


def scaling_table(networks: pd.DataFrame, infinite: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per number: model, kind (size, width, onset, onset exponent, descent), who, axis, where, value with
    interval, what the theory says, ``at`` (of a descent: where its peak is), and how many ``points`` of the axis it
    used.

    ``networks`` and ``infinite`` as in ``verdict.evaluate``. Cost: about 400 evaluations of each number.
    """
    networks = usable(networks)
    rows: list[dict[str, Any]] = []
    labels = setting_labels(networks)
    needed = ["width", "P", "ridge", "seed", "draw", "infinite_test", "block_pool_test", *CURVES.values()]
    networks = networks[[name for name in needed if name in networks]]
    for model, mine in networks.groupby(labels, sort=False):
        found = [*_in_size(mine), *_in_width(mine), *_onset(mine), *_descents(mine)]
        rows += [{"model": model} | row for row in found]
    if infinite is not None and len(infinite):
        for model, mine in infinite.groupby(setting_labels(infinite), sort=False):
            for ridge, curve in mine.groupby("ridge"):
                if row := _size_slope(curve, "infinite_heldout", "theory_test", ["draw"]):
                    rows.append({"model": model, "who": "infinite width", "ridge": ridge} | row)
    return pd.DataFrame(rows).reindex(columns=list(SCALING_COLUMNS))


def _in_size(mine: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for (width, ridge), curve in mine.groupby(["width", "ridge"]):
        for who, (column, theory) in PREDICTED_SIZE.items():
            if row := _size_slope(curve, column, theory, ["draw", "seed"]):
                rows.append({"who": who, "width": width, "ridge": ridge} | row)
    return rows


def _size_slope(curve: pd.DataFrame, column: str, theory: str, factors: Sequence[str]) -> dict[str, Any] | None:
    kept = curve.dropna(subset=[column]) if column in curve else curve[:0]
    sizes = np.sort(kept["P"].unique()).astype(np.float64)
    if len(sizes) < LEAST:
        return None

    def statistic(means: FloatArray) -> FloatArray:
        return slopes(sizes, means[:, 0])[:, None]

    found = resampled(kept, ["P"], [column], statistic, factors=factors)[0]
    predicted = math.nan
    if theory in kept:
        predicted = float(slopes(sizes, kept.groupby("P")[theory].mean().to_numpy().astype(np.float64)[None])[0])
    return _row("size", "P", found, predicted, len(sizes))


def _in_width(mine: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for (size, ridge), curve in mine.groupby(["P", "ridge"]):
        for who, column in MEASURED.items():
            excess = _excess(curve, column)
            widths = np.sort(excess["width"].unique()).astype(np.float64)
            if len(widths) < LEAST:
                continue
            errors = excess.groupby("width")["excess"].std().to_numpy().astype(np.float64)
            found = _exponent(excess, widths, errors)
            law = _excess(curve, "block_test") if who != "last layer" else excess[:0]
            # with the same weights: a curve that is no power law has another exponent with others
            predicted = _exponent(law, widths, errors) if law["width"].nunique() == len(widths) else None
            rows.append({"who": who, "P": size, "ridge": ridge} | _row("width", "N", found, predicted, len(widths)))
    return rows


def _excess(curve: pd.DataFrame, column: str) -> pd.DataFrame:
    """``curve`` with the column excess, where it is known."""
    if column not in curve or "infinite_test" not in curve:
        return curve[:0].assign(excess=0.0)
    return curve.assign(excess=curve[column] / curve["infinite_test"] - 1).dropna(subset="excess")


def _exponent(excess: pd.DataFrame, widths: FloatArray, errors: FloatArray) -> Estimate:
    def statistic(means: FloatArray) -> FloatArray:
        return decays(widths, means[:, 0], errors)[:, None]

    return resampled(excess, ["width"], ["excess"], statistic)[0]


def _onset(mine: pd.DataFrame) -> list[dict[str, Any]]:
    """P_1/2 of every width at one ridge, and its exponent in N."""
    rows = []
    for ridge, part in mine.groupby("ridge"):
        for who, column in CURVES.items():
            if column in part and "infinite_test" in part:
                kept = part.dropna(subset=[column, "infinite_test"])
                kept = kept.assign(ratio=kept[column] / kept["infinite_test"])
                rows += [{"who": who, "ridge": ridge} | row for row in _onset_of(kept)] if len(kept) else []
    return rows


def _onset_of(kept: pd.DataFrame) -> list[dict[str, Any]]:
    """``ratio``: risk over that at infinite width. Where it does not pass 2 within the sizes there is no P_1/2.

    The exponent is that of the widest widths in a row that have one: narrower ones are beyond the interpolation peak.
    """
    places = kept[["width", "P"]].drop_duplicates().sort_values(["width", "P"]).to_numpy(np.float64)
    widths = np.unique(places[:, 0])
    parts = [places[:, 0] == width for width in widths]

    def halves(means: FloatArray) -> FloatArray:
        return np.stack([crossings(places[part, 1], means[:, 0, part]) for part in parts], axis=1)

    whole = kept.groupby(["width", "P"])["ratio"].mean().to_numpy(np.float64)
    run = last_run(np.isfinite(halves(whole[None, None])[0]))

    def statistic(means: FloatArray) -> FloatArray:
        found = halves(means)
        if run.sum() < LEAST:
            return found
        return np.column_stack([found, slopes(widths[run], np.exp(found[:, run]))])

    found = resampled(kept, ["width", "P"], ["ratio"], statistic)
    rows = [
        {"width": width} | _row("onset", "P", _exp(one), None, 2)
        for width, one in zip(widths, found, strict=False)
        if math.isfinite(one.value)
    ]
    return rows + [_row("onset exponent", "N", one, None, int(run.sum())) for one in found[len(widths) :]]


def _descents(mine: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for axis, other in (("width", "P"), ("P", "width")):
        for (place, ridge), curve in mine.groupby([other, "ridge"]):
            for who, column in CURVES.items():
                kept = curve.dropna(subset=[column]) if column in curve else curve[:0]
                places = np.sort(kept[axis].unique()).astype(np.float64)
                if len(places) < LEAST:
                    continue
                found = resampled(kept, [axis], [column], _heights)[0]
                peak = int(peaks(np.log(kept.groupby(axis)[column].mean().to_numpy().astype(np.float64))[None])[1][0])
                row = _row("descent", "N" if axis == "width" else "P", found, None, len(places))
                rows.append({"who": who, other: place, "ridge": ridge, "at": places[peak]} | row)
    return rows


def _row(kind: str, axis: str, found: Estimate, predicted: Estimate | float | None, points: int) -> dict[str, Any]:
    row = {"kind": kind, "axis": axis, "points": points}
    row |= {"value": found.value, "se": found.se, "low": found.low, "high": found.high}
    if isinstance(predicted, Estimate):
        row |= {"predicted": predicted.value, "predicted_low": predicted.low, "predicted_high": predicted.high}
    elif predicted is not None:
        row["predicted"] = predicted
    return row


def _exp(one: Estimate) -> Estimate:
    value = math.exp(one.value)
    return Estimate(value, value * one.se, math.exp(one.low), math.exp(one.high))


def slopes(x: FloatArray, y: FloatArray) -> FloatArray:
    """d log y/d log x of the least-squares line of every row of y (rows, n); NaN where a value is missing."""
    centred = np.log(x) - np.log(x).mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.where(y > 0, np.log(y), math.nan)
    return np.asarray(logs @ centred / (centred @ centred), np.float64)


def decays(widths: FloatArray, excess: FloatArray, errors: FloatArray) -> FloatArray:
    """beta of the weighted least-squares fit A N^-beta of every row of excess (rows, n).

    An excess may come out negative where the width is not felt. NaN for a beta outside of [-1, 4].
    """
    if not (errors > 0).all():
        return np.full(len(excess), math.nan)
    betas = np.linspace(-1, 4, 501)
    shapes = (widths / widths[0])[None, :] ** -betas[:, None] / errors
    gain = (excess / errors @ shapes.T).clip(0) ** 2 / (shapes**2).sum(axis=1)  # what a positive amplitude explains
    best = np.where(np.isnan(gain).any(axis=1), 0, np.nan_to_num(gain).argmax(axis=1))
    return np.where((best > 0) & (best < len(betas) - 1), betas[best], math.nan)


def crossings(sizes: FloatArray, ratio: FloatArray) -> FloatArray:
    """log P where every row of ``ratio`` (rows, n) first passes 2, on the line between neighbours; else NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        height = np.where(ratio > 0, np.log(ratio), math.nan) - math.log(2)
        found = np.full(len(ratio), math.nan)
        for k in reversed(range(len(sizes) - 1)):
            a, b = height[:, k], height[:, k + 1]
            place = math.log(sizes[k]) + math.log(sizes[k + 1] / sizes[k]) * a / (a - b)
            found = np.where((a < 0) & (b >= 0), place, found)
    return np.where(np.isnan(height).any(axis=1), math.nan, found)


def last_run(known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The last true entries in a row."""
    run = np.zeros_like(known)
    for k in reversed(range(len(known))):
        if run.any() and not known[k]:
            break
        run[k] = known[k]
    return run


def peaks(log_risk: FloatArray) -> tuple[FloatArray, IntArray]:
    """Height of the highest peak of every row (rows, n) over the higher of the lowest points to its left and right, and
    its index."""
    left = np.minimum.accumulate(log_risk, axis=1)[:, :-2]
    right = np.minimum.accumulate(log_risk[:, ::-1], axis=1)[:, ::-1][:, 2:]
    heights = log_risk[:, 1:-1] - np.maximum(left, right)
    return heights.max(axis=1), heights.argmax(axis=1) + 1


def _heights(means: FloatArray) -> FloatArray:
    return peaks(np.log(means[:, 0]))[0][:, None]


def descent_verdict(row: Any) -> str:
    """``peak`` | ``none`` | ``undetermined``: whether the interval lies above or below ``BUMP``."""
    if row["low"] > math.log1p(BUMP):
        return "peak"
    return "none" if row["high"] < math.log1p(BUMP) else "undetermined"
