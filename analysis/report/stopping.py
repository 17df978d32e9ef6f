"""The report's section on early stopping."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ridgescope.analysis.report.text import number, percent, plus_minus
from ridgescope.analysis.stopping import best_stops
from ridgescope.analysis.stopping_figure import stopping_figure

BEST_HEADINGS = (
    "width", "P", "time", "test risk: network", "flow", "best ridge", "network / best ridge", "λ by training risk",
    "1/t",
)  # fmt: skip
TIME_HEADINGS = (
    "time", "test risk: network", "flow", "network / flow", "flow, infinite width", "theory", "1/t",
    "λ nearest to the flow", "λ by training risk", "network / that ridge",
)  # fmt: skip
PER_DECADE = 2  # times in the table; stopping.parquet has them all


def stopping_figures(table: pd.DataFrame) -> list[tuple[str, Figure]]:
    """(P, figure) of one model, for each sample size; none for an empty table."""
    sizes = sorted(table["P"].unique()) if len(table) else []
    return [(f"{size:g}", stopping_figure(table[table["P"] == size])) for size in sizes]


def stopping_lines(table: pd.DataFrame) -> dict[str, Any] | None:
    """The best stop of every cell, and each cell at a few times, as text; None for an empty ``table`` of a model."""
    if table.empty:
        return None
    networks = table[(table["who"] == "network") & (table["time"] > 0)]
    cells = []
    for (width, size), rows in networks.groupby(["width", "P"], sort=True):
        infinite = table[(table["who"] == "infinite") & (table["P"] == size)]
        lines = [_line(rows[rows["step"] == step], infinite[infinite["step"] == step]) for step in _few(rows)]
        cells.append({"title": f"width {width:g}, P = {size:g}", "lines": lines})
    return {"best": [_best(row) for row in best_stops(table).to_dict("records")], "cells": cells}


def _few(rows: pd.DataFrame) -> list[int]:
    """Steps at about ``PER_DECADE`` times in each factor of ten, the last among them."""
    times = rows.drop_duplicates("step").set_index("step")["time"].sort_index()
    bins = np.floor(PER_DECADE * np.log10(times.iloc[-1] / times) + 1e-9)
    return times.groupby(bins).idxmax().sort_values().tolist()


def _line(rows: pd.DataFrame, infinite: pd.DataFrame) -> list[str]:
    ratio, ridge = ((rows["network_test"] / rows[other]).map(math.log) for other in ("flow_test", "ridge_test"))
    theory = [infinite[name].mean() if len(infinite) else np.nan for name in ("infinite_flow_test", "theory_flow_test")]
    return [
        number(rows["time"].iloc[0]),
        number(rows["network_test"].mean()),
        number(rows["flow_test"].mean()),
        plus_minus(math.expm1(float(ratio.mean())), float(np.std(ratio, ddof=1)) / math.sqrt(len(ratio))),
        *(number(float(value)) for value in theory),
        number(float(1 / rows["time"].iloc[0]), 2),
        number(float(rows["flow_ridge"].mean()), 2),
        number(float(np.exp(np.log(rows["acting_ridge"]).mean())), 2),
        percent(float(np.expm1(ridge.mean()))),
    ]


def _best(row: Mapping[Any, Any]) -> list[str]:
    return [
        f"{row['width']:g}",
        f"{row['P']:g}",
        number(row["time"]) + ("" if row["interior"] else " (the last)"),
        number(row["network_test"]),
        number(row["flow_test"]),
        number(row["best_ridge_test"]),
        plus_minus(row["stop_over_ridge"], row["stop_over_ridge_se"]),
        number(row["acting_ridge"], 2),
        number(1 / row["time"], 2),
    ]
