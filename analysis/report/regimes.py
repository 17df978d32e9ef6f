"""The report's sections on the regime map and on scaling."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ridgescope.analysis.regimes import REGIMES
from ridgescope.analysis.report.text import DASH, interval, number, percent
from ridgescope.analysis.scaling import BUMP, descent_verdict

MAP_HEADINGS = (
    "alpha", "width", "P", "λ", "described by", "network / kernel at init.", "network / kernel after",
    "kernel moved by", "networks",
)  # fmt: skip


def regime_summary(table: pd.DataFrame) -> str:
    """How many cells each kernel describes, and the kernel's use at every laziness."""
    count = table["regime"].value_counts().reindex(list(REGIMES), fill_value=0)
    return (
        f"Of {len(table)} cells regression with the kernel at initialisation describes {count['initial']}, only that "
        f"with the kernel after training {count['final']}, neither {count['neither']}. In {count['not initial']} it is "
        f"not the one at initialisation and the other is undecided; {count['undetermined']} are undetermined."
    )


def regime_lines(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a map as text, by laziness, width, P and ridge."""
    ordered = table.sort_values(["alpha", "width", "P", "ridge"])
    return [
        {
            "regime": row["regime"],
            "values": [
                *(f"{row[name]:g}" for name in ("alpha", "width", "P", "ridge")),
                row["regime"],
                *(interval(row[f"{side}_low"], row[f"{side}_high"], row[side]) for side in REGIMES[:2]),
                percent(row["movement"]),
                f"{row['networks']}" + (f" (without {row['excluded']})" if row["excluded"] else ""),
            ],
        }
        for row in ordered.to_dict("records")
    ]


def scaling_lines(table: pd.DataFrame, model: str) -> dict[str, list[list[str]]]:
    """What one model's sweep says of exponents, onset and descent, as rows of text; empty lists are left out.

    Curves without a peak are counted, not listed.
    """
    mine = table[(table["model"] == model) & table["value"].notna()]
    flat = (mine["kind"] == "descent") & (mine["high"] < np.log1p(BUMP))
    makers = {"size": _size, "width": _width, "onset": _onset, "onset exponent": _exponent, "descent": _descent}
    found = {
        kind: [make(row) for row in mine[(mine["kind"] == kind) & ~flat].to_dict("records")]
        for kind, make in makers.items()
    }
    onset = found.pop("onset exponent") + found["onset"]
    if flat.any():
        found["descent"].append([f"{flat.sum()} further curves", DASH, DASH, DASH, "none", DASH, "below 5 %"])
    return {kind: lines for kind, lines in (found | {"onset": onset}).items() if lines}


def _size(row: Mapping[Any, Any]) -> list[str]:
    return [row["who"], _given(row, "width"), f"{row['ridge']:g}", _range(row), number(row["predicted"])]


def _width(row: Mapping[Any, Any]) -> list[str]:
    return [row["who"], _given(row, "P"), f"{row['ridge']:g}", _range(row), _range(row, "predicted")]


def _onset(row: Mapping[Any, Any]) -> list[str]:
    return [row["who"], f"P_1/2 at width {row['width']:g}", f"{row['ridge']:g}", _range(row)]


def _exponent(row: Mapping[Any, Any]) -> list[str]:
    return [row["who"], f"exponent of P_1/2 in N ({row['points']} widths)", f"{row['ridge']:g}", _range(row)]


def _descent(row: Mapping[Any, Any]) -> list[str]:
    fixed = "P" if row["axis"] == "N" else "width"
    height = f"{percent(np.expm1(row['value']))} ({percent(np.expm1(row['low']))} to {percent(np.expm1(row['high']))})"
    peak = f"{row['at']:g}" if descent_verdict(row) == "peak" else DASH
    return [
        row["who"],
        row["axis"],
        f"{fixed} = {row[fixed]:g}",
        f"{row['ridge']:g}",
        descent_verdict(row),
        peak,
        height,
    ]


def _given(row: Mapping[Any, Any], name: str) -> str:
    return f"{row[name]:g}" if np.isfinite(row[name]) else "∞"


def _range(row: Mapping[Any, Any], name: str = "value") -> str:
    low, high = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
    if not np.isfinite(row[low]):
        return number(row[name])
    return f"{number(row[name])} ({number(row[low])} to {number(row[high])})"
