"""The forecast: risks on a grid of P, N and ridge with intervals, the best ridge, what limits, and what would help.

Letters: P samples, N width, lam ridge, M pool points. A row is

    extrapolation  'none' (P <= M), 'samples' (the pool resolves this kappa), 'tail' (power laws), 'width' (1/N)
    status         'forecast', or 'undetermined' with what would be needed
    regime         'data', 'width', 'ridge': which of 2P, 2N, the best lam lowers the risk most; 'noise': none by 2 %
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ridgescope.analysis.forecast.pilot import MAX_RATIO, QUANTILE, Pilot, PilotRisks, make_pilot
from ridgescope.analysis.forecast.width import WidthPilots, at_width, ensemble_readings, paying_members
from ridgescope.theory import pool_estimator
from ridgescope.theory.readings import PoolReadings, interpolate
from ridgescope.train.errors import UserError

FLAT = 0.01  # of the risk: how far the flat range of the ridge reaches
NOTICED = 0.02  # gain in risk below which doubling something does not help
WIDEST = math.log(1.5)  # half-width of an interval in log risk, beyond which nothing is said
RIDGE_GRID = torch.logspace(-8, 0, 97, dtype=torch.float64)  # times the kernel's mean diagonal


@dataclass(frozen=True)
class Forecast:
    """``table``: a row per P, N and ridge; ``optimal``: per P and N at its best ridge; ``pilot``: left-out risks of
    the pool and its parts; ``widths``: the pilots themselves."""

    table: pd.DataFrame
    optimal: pd.DataFrame
    pilot: pd.DataFrame
    widths: list[WidthPilots]


def forecast(
    kernels: Mapping[float, Sequence[Float64[Tensor, "m m"]]],
    targets: Float64[Tensor, "m c"],
    *,
    num_samples: Sequence[int | float],
    ridges: Sequence[int | float] | None = None,
    widths: Sequence[int | float] | None = None,
) -> Forecast:
    """What ridge regression with these kernels would give on ``num_samples`` points.

    ``kernels``: for each width N (``math.inf`` for a given or infinite-width kernel) the unnormalised kernels of drawn
    networks on the *same* M points, two or more at a finite width; ``targets`` (M, C). ``ridges``: lam in the
    kernel's units, by default half decades from 1e-6 to 0.1 of the mean diagonal. ``widths``: by default those
    measured. At a finite width the forecast is for one more network, not for the mean over networks.

    Cost per kernel: that of `make_pilot`, 8 to 12 s for M = 2000 on one core; then milliseconds per P and N.

    Raises ``UserError`` for what no answer can be given to: see `make_pilot`, and impossible sizes.
    """
    if not kernels or not num_samples:
        raise UserError("nothing to forecast; pass at least one kernel and one number of samples")
    for name, values in (("num_samples", num_samples), ("ridges", ridges or []), ("widths", widths or [])):
        for value in values:
            if not value > 0:
                raise UserError(f"{name} holds {value:g}; every entry must be > 0")
    measured = [_width_pilots(width, grams, targets) for width, grams in sorted(kernels.items())]
    scale = measured[-1].pilots[0].scale
    chosen = torch.tensor(ridges or [scale * 10 ** (-x / 2) for x in range(2, 13)], dtype=torch.float64)
    asked = list(widths) if widths else [pilots.width for pilots in measured]
    rows, best = [], []
    for width in asked:
        for size in num_samples:
            optimum = _best_ridge(measured, width, size, scale)
            rows += _rows(measured, width, size, chosen, optimum)
            at = torch.tensor([optimum.ridge], dtype=torch.float64)
            (row,) = _rows(measured, width, size, at, optimum)
            best.append(row | {"ridge_low": optimum.low, "ridge_high": optimum.high})
    return Forecast(pd.DataFrame(rows), pd.DataFrame(best), _pilot_points(measured, chosen), measured)


def _width_pilots(width: int | float, grams: Sequence[Tensor], targets: Tensor) -> WidthPilots:
    if math.isfinite(width) and len(grams) < 2:
        raise UserError(
            f"width {width:g} has one kernel, which cannot say how much networks of this width differ; draw two or "
            "more (num_draws), or pass a kernel that is wanted as it is with width inf"
        )
    pilots = [make_pilot(gram, targets) for gram in grams]
    floor = None
    if len(grams) > 1 and math.isfinite(width):
        grid = pilots[0].readings.pool_ridge[::4]
        floor = ensemble_readings(pool_estimator(grams[0], targets), pool_estimator(grams[1], targets), grid)
    return WidthPilots(width, pilots, floor)


def _rows(
    measured: list[WidthPilots], width: int | float, size: int | float, ridges: Tensor, best: "_BestRidge"
) -> list[dict[str, object]]:
    risks, wide = at_width(measured, width, size, ridges)
    gains = {
        "data": risks.log_risk - at_width(measured, width, 2 * size, ridges)[0].log_risk,
        "ridge": risks.log_risk - best.log_risk,
        "width": risks.log_risk - _doubled(measured, width, size, ridges),
    }
    nearest = _nearest(measured, width)
    floor = nearest.ensemble_floor(size, risks)
    rows: list[dict[str, object]] = []
    for i, ridge in enumerate(ridges.tolist()):
        row = {"P": size, "width": width, "ridge": ridge, **_statement(risks, i, nearest.pilots[0], size, wide)}
        gained = {f"gain_{name}": 1 - math.exp(-float(gain[i])) for name, gain in gains.items()}
        limit = max(gained, key=lambda name: gained[name])
        row |= gained | {"regime": limit.removeprefix("gain_") if gained[limit] > NOTICED else "noise"}
        rows.append(row | {"ensemble_floor": float(floor[i]), "members": paying_members(float(floor[i]))})
    return rows


def _statement(risks: PilotRisks, i: int, pilot: Pilot, size: int | float, wide: bool) -> dict[str, object]:
    """Risk and accuracy with intervals, kappa, and how far they can be trusted."""
    centre, half = float(risks.log_risk[i]), QUANTILE * float(risks.se[i])
    low, high = math.exp(centre - half), math.exp(centre + half)
    extrapolation = "none" if size <= pilot.size else "tail" if float(risks.beyond[i]) > 0 else "samples"
    statement: dict[str, object] = {"risk": math.exp(centre), "risk_low": low, "risk_high": high}
    statement |= {"kappa": float(risks.kappa[i]), "df1_share": float(risks.share[i]), "beyond": float(risks.beyond[i])}
    statement |= {"extrapolation": "width" if wide else extrapolation, **_accuracies(pilot, centre, half)}
    needed = _needed(pilot, size, half)
    return statement | {"status": "undetermined" if needed else "forecast", "needed": needed}


def _accuracies(pilot: Pilot, centre: float, half: float) -> dict[str, object]:
    """The map's own scatter, in the logit, joins the risk's interval."""
    if pilot.accuracy is None:
        return {"accuracy": math.nan, "accuracy_low": math.nan, "accuracy_high": math.nan}
    at = pilot.accuracy.at(torch.tensor([centre, centre + half, centre - half], dtype=torch.float64))
    logit = torch.logit(at)
    spread = QUANTILE * pilot.accuracy.scatter
    low, high = (float((logit[i] - logit[0]).abs().square() + spread**2) ** 0.5 for i in (1, 2))
    values = torch.sigmoid(torch.stack([logit[0], logit[0] - low, logit[0] + high])).tolist()
    return dict(zip(("accuracy", "accuracy_low", "accuracy_high"), values, strict=True))


def _needed(pilot: Pilot, size: int | float, half: float) -> str:
    """What a forecast would need, or nothing."""
    if pilot.noise_exceeds_signal:
        return (
            f"a signal above the noise (the best left-out risk is {float(pilot.readings.risk.min()):.3g}, the power of "
            f"the target {pilot.target_power:.3g}): cleaner labels, another kernel or a larger pool"
        )
    if size > MAX_RATIO * pilot.size:
        return f"P = {size:g} is more than {MAX_RATIO} times the pool; a pool of {math.ceil(size / MAX_RATIO)} points"
    if not half < WIDEST:
        wanted = math.ceil(pilot.size * (half / WIDEST) ** 2) if math.isfinite(half) else 4 * pilot.size
        return f"the interval is a factor {math.exp(min(half, 50.0)):.2g} either way; a pool of about {wanted} points"
    return ""


@dataclass(frozen=True)
class _BestRidge:
    """``low`` to ``high``: where the risk is flat."""

    ridge: float
    low: float
    high: float
    log_risk: float


def _best_ridge(measured: list[WidthPilots], width: int | float, size: int | float, scale: float) -> _BestRidge:
    """The middle, in degrees of freedom, of the range in which the risk is hardly above that at the lowest point.

    The lowest point is where the risk and its sampling error's upper end are least. The error of the tail does not
    count: it grows steadily towards small ridges, and would always choose larger ones. Only the valley is searched that
    is reached downhill from the pool's own best ridge: at ridges far below it a few points decide the forecast, and
    another, lower valley there is a pilot's noise. Around it the forecast does not tell the ridges apart, so the middle
    is taken; of df1 and not of the ridge, for df1 no longer changes where a ridge is too small to matter
    (docs/results/forecast.md).
    """
    ridges = RIDGE_GRID * scale
    start, risks = (at_width(measured, width, n, ridges)[0] for n in (measured[0].pilots[0].size, size))
    own, upper = ((r.log_risk + QUANTILE * r.noise).tolist() for r in (start, risks))
    lowest = min(range(len(own)), key=own.__getitem__)
    for step in (-1, 1):
        while 0 <= lowest + step < len(upper) and upper[lowest + step] < upper[lowest]:
            lowest += step
    low, high = _flat(risks.log_risk, lowest, FLAT)
    first, last = _flat(risks.log_risk, lowest, FLAT / 2)
    share = risks.share[first : last + 1]
    middle = first + int((share - (share[0] + share[-1]) / 2).abs().argmin())
    return _BestRidge(float(ridges[middle]), float(ridges[low]), float(ridges[high]), float(risks.log_risk[middle]))


def _flat(log_risk: Float64[Tensor, " n"], lowest: int, rise: float) -> tuple[int, int]:
    """The ends of the range around ``lowest`` in which the risk is at most ``rise`` above the risk there."""
    flat = (log_risk <= log_risk[lowest] + math.log1p(rise)).tolist()
    low = high = lowest
    while low > 0 and flat[low - 1]:
        low -= 1
    while high + 1 < len(flat) and flat[high + 1]:
        high += 1
    return low, high


def _doubled(measured: list[WidthPilots], width: int | float, size: int | float, ridges: Tensor) -> Tensor:
    """log risk at twice the width, or at this width where nothing is known beyond it."""
    try:
        return at_width(measured, 2 * width, size, ridges)[0].log_risk
    except UserError:
        return at_width(measured, width, size, ridges)[0].log_risk


def _nearest(measured: list[WidthPilots], width: int | float) -> WidthPilots:
    return min(measured, key=lambda pilots: abs(1 / pilots.width - 1 / width))


def _pilot_points(measured: list[WidthPilots], ridges: Tensor) -> pd.DataFrame:
    """Left-out risks of the pool and its parts: what the pilot has seen."""
    rows = []
    for pilots in measured:
        for pilot in pilots.pilots:
            parts = {1: [pilot.readings], **pilot.parts}
            for number, readings in parts.items():
                risk, correct = (_at(readings, name, ridges) for name in ("risk", "correct"))
                se = _at(readings[:1], "risk_se", ridges) / number**0.5
                for i, ridge in enumerate(ridges.tolist()):
                    row = {"P": readings[0].size, "width": pilots.width, "ridge": ridge, "risk": float(risk[i])}
                    row |= {"risk_se": float(se[i] * risk[i]), "accuracy": float(correct[i]), "parts": number}
                    rows.append(row)
    return pd.DataFrame(rows)


def _at(readings: Sequence[PoolReadings], name: str, ridges: Tensor) -> Tensor:
    """Mean of a reading over parts, at these pool ridges."""
    return torch.stack([interpolate(ridges.log(), r.pool_ridge.log(), getattr(r, name)) for r in readings]).mean(0)
