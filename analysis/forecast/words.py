"""The recommendation: one paragraph in plain words, from the tables alone."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ridgescope.analysis.forecast.grid import Forecast
from ridgescope.analysis.forecast.spend import best_risk, cheapest
from ridgescope.analysis.report.text import number, percent

LIMITS = {
    "data": "more samples",
    "width": "a wider network",
    "ridge": "another ridge",
    "noise": "nothing in P, N or ridge: what is left is noise, or what this kernel cannot learn",
}


def recommendation(
    result: Forecast, spending: pd.DataFrame, *, target_risk: float | None = None, budget: float | None = None
) -> str:
    """What the pilot has, what the largest determined run will give at its best ridge, what helps most, what to buy."""
    largest = result.widths[-1].pilots[0]
    measured = float(result.pilot.loc[result.pilot["P"] == largest.size, "risk"].min())
    sentences = [f"The pilot of {largest.size} samples has a best left-out risk of {number(measured)}."]
    known = result.optimal[result.optimal["status"] == "forecast"]
    if known.empty:
        return f"{sentences[0]} No forecast: {result.optimal.iloc[-1]['needed']}."
    best = _record(known.sort_values("risk").iloc[0])
    sentences.append(
        f"{_subject(best)} will have risk {number(best['risk'])} (90 %: {number(best['risk_low'])} to "
        f"{number(best['risk_high'])}){_accuracy(best)} at ridge {number(best['ridge'], 2)}, where anything from "
        f"{number(best['ridge_low'], 2)} to {number(best['ridge_high'], 2)} costs less than 1 %."
    )
    if best["extrapolation"] == "tail":
        sentences.append("That ridge lies beyond what the pilot resolves: the power laws of its tail are used there.")
    gain = best[f"gain_{best['regime']}"] if best["regime"] != "noise" else 0.0
    helps = f"What then helps most is {LIMITS[best['regime']]}"
    sentences.append(f"{helps} (doubling it: {percent(-gain)})." if gain and best["regime"] != "ridge" else f"{helps}.")
    if best["members"] > 1:
        sentences.append(
            f"An ensemble pays up to {best['members']} members; endlessly many would have "
            f"{percent(best['ensemble_floor'] - 1)} of risk."
        )
    sentences += _purchases(spending, target_risk, budget)
    lost = result.optimal[result.optimal["status"] != "forecast"]
    if len(lost):
        sentences.append(f"Undetermined: {_subject(_record(lost.iloc[0]))} ({lost.iloc[0]['needed']} is needed).")
    return " ".join(sentences)


def _record(row: pd.Series) -> dict[str, Any]:
    return {str(key): value for key, value in row.items()}


def _subject(row: Mapping[str, Any]) -> str:
    width = "" if math.isinf(row["width"]) else f" and width {row['width']:g}"
    return f"P = {row['P']:g} samples{width}"


def _accuracy(row: Mapping[str, Any]) -> str:
    if math.isnan(row["accuracy"]):
        return ""
    low, high = 100 * row["accuracy_low"], 100 * row["accuracy_high"]
    return f" and accuracy {100 * row['accuracy']:.1f} % ({low:.1f} to {high:.1f} %)"


def _purchases(spending: pd.DataFrame, target_risk: float | None, budget: float | None) -> list[str]:
    sentences = []
    if target_risk is not None:
        chosen = cheapest(spending, target_risk)
        if chosen is None:
            sentences.append(f"No choice on this grid is forecast to reach risk {number(target_risk)}.")
        else:
            sure = cheapest(spending, target_risk, safe=True)
            safe = "" if sure is None else f"; with 95 % confidence: {_purchase(sure)}"
            sentences.append(f"The cheapest way to risk {number(target_risk)} is {_purchase(chosen)}{safe}.")
    if budget is not None:
        chosen = best_risk(spending, budget)
        if chosen is None:
            sentences.append(f"Nothing on this grid costs as little as {budget:.2g} FLOPs.")
        else:
            sentences.append(f"The best risk for {budget:.2g} FLOPs is {number(chosen['risk'])}: {_purchase(chosen)}.")
    return sentences


def _purchase(row: Mapping[str, Any]) -> str:
    networks = f"{row['members']:.0f} networks" if row["members"] > 1 else "one network"
    seconds = f"{number(row['seconds_here'], 2)} s on this machine"
    return (
        f"{networks} of width {row['width']:.0f} on P = {row['P']:.0f} ({row['flops']:.2g} FLOPs, "
        f"{seconds} at its measured rate, {number(row['gpu_seconds'], 2)} s and "
        f"{number(row['gpu_kwh'], 2)} kWh on the modelled GPU)"
    )
