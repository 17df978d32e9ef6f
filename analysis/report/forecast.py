"""The forecast's page: the recommendation, learning curves with bands, the table at the best ridge, what to buy."""

import math
from collections.abc import Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ridgescope.analysis.drawing import (
    LINE_STYLES,
    few_log_ticks,
    figure_bytes,
    new_figure,
    ordered_colour,
    paper_style,
)
from ridgescope.analysis.forecast.grid import Forecast
from ridgescope.analysis.forecast.pilot import QUANTILE
from ridgescope.analysis.forecast.width import at_width
from ridgescope.analysis.report.page import inline_svg, plain, templates
from ridgescope.analysis.report.text import number
from ridgescope.train.errors import UserError
from ridgescope.train.files import write_atomically, write_text

LINES = 4  # ridges in a figure
HEADINGS = (
    "width",
    "P",
    "risk",
    "90 %",
    "accuracy",
    "best λ",
    "λ within 1 %",
    "κ",
    "limited by",
    "members",
    "basis",
    "note",
)
SPENDING = ("P", "width", "members", "λ", "risk", "FLOPs", "s here", "GPU s", "GPU kWh")


def write_forecast(
    result: Forecast,
    recommendation: str,
    folder: Path,
    *,
    metadata: Mapping[str, Any],
    runs: pd.DataFrame | None = None,
    spending: pd.DataFrame | None = None,
) -> Path:
    """Write index.html, figures, and forecast, optimal, pilot (spending) as Parquet; returns the page's path.

    ``runs``: measured larger runs with columns P, width, ridge, test, drawn beside the forecast.
    """
    tables = {"forecast": result.table, "optimal": result.optimal, "pilot": result.pilot}
    bought = spending if spending is not None and len(spending) else None
    if bought is not None:
        tables["spending"] = bought
    for name, table in tables.items():
        write_atomically(folder / f"{name}.parquet", table.to_parquet)
    figures = {}
    with paper_style():
        drawn = {"curves": curves_figure(result, runs), "ridges": ridges_figure(result, runs)}
    for name, figure in drawn.items():
        for kind in ("svg", "pdf"):
            content = figure_bytes(figure, kind)
            write_atomically(folder / "figures" / f"{name}.{kind}", partial(Path.write_bytes, data=content))
        figures[name] = inline_svg(figure_bytes(figure, "svg").decode(), name, name)
    page = folder / "index.html"
    write_text(page, _render(result, recommendation, figures, metadata, bought))
    return page


def curves_figure(result: Forecast, runs: pd.DataFrame | None = None) -> Figure:
    """Risk against P at a few ridges: one panel for each width of the forecast."""
    widths = list(dict.fromkeys(result.table["width"]))
    figure = new_figure(3.2, len(widths))
    panels = figure.subplots(1, len(widths), sharey=True, squeeze=False)[0]
    ridges = _some(sorted(result.table["ridge"].unique()))
    for axes, width in zip(panels, widths, strict=True):
        for style, ridge in zip(LINE_STYLES, ridges, strict=False):
            _curve(axes, result, width, ridge, style["color"])
            _dots(axes, result.pilot, width, ridge, "risk", color=style["color"], marker="o")
            if runs is not None:
                _dots(axes, runs, width, ridge, "test", color=style["color"], marker="s", mfc="none")
        axes.set(xscale="log", yscale="log", xlabel="samples P", title="" if math.isinf(width) else f"width {width:g}")
        for axis in (axes.xaxis, axes.yaxis):
            few_log_ticks(axis)
    panels[0].set_ylabel("test risk")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", title="ridge λ")
    return figure


def _curve(axes: Axes, result: Forecast, width: float, ridge: float, colour: str) -> None:
    import torch

    size = result.widths[0].pilots[0].size
    places = (
        np.geomspace(size, result.table["P"].max(), 25) if result.table["P"].max() > size else np.array([float(size)])
    )
    risks = [at_width(result.widths, width, p, torch.tensor([ridge], dtype=torch.float64))[0] for p in places.tolist()]
    centre = np.array([float(r.log_risk) for r in risks])
    half = QUANTILE * np.array([float(r.se) for r in risks])
    tail = np.array([float(r.beyond) > 0 for r in risks])
    axes.fill_between(places, np.exp(centre - half), np.exp(centre + half), color=colour, alpha=0.15, lw=0)
    axes.plot(places, np.where(tail, np.nan, np.exp(centre)), color=colour, label=f"{ridge:.2g}")
    axes.plot(places, np.where(tail, np.exp(centre), np.nan), color=colour, ls="--")


def _dots(axes: Axes, table: pd.DataFrame, width: float, ridge: float, column: str, **options: Any) -> None:
    mine = table[(table["width"] == width) & np.isclose(table["ridge"], ridge, rtol=1e-6)].dropna(subset=column)
    if len(mine):
        axes.plot(mine["P"].to_numpy(), mine[column].to_numpy(), ls="none", **options)


def ridges_figure(result: Forecast, runs: pd.DataFrame | None = None) -> Figure:
    """Risk against the ridge, a line per P, at the largest width of the forecast."""
    figure = new_figure(3.0)
    axes = figure.subplots()
    width = result.table["width"].max()
    sizes = sorted(result.table["P"].unique())
    for place, size in enumerate(sizes):
        colour = ordered_colour(place, len(sizes))
        rows = result.table[(result.table["P"] == size) & (result.table["width"] == width)].sort_values("ridge")
        low, high = rows["risk_low"].to_numpy(), rows["risk_high"].to_numpy()
        axes.fill_between(rows["ridge"].to_numpy(), low, high, color=colour, alpha=0.15, lw=0)
        axes.plot(rows["ridge"].to_numpy(), rows["risk"].to_numpy(), color=colour, label=f"{size:g}")
        if runs is not None:
            mine = runs[(runs["P"] == size) & (runs["width"] == width)]
            axes.plot(mine["ridge"].to_numpy(), mine["test"].to_numpy(), "s", color=colour, mfc="none")
    axes.set(xscale="log", yscale="log", xlabel="ridge λ", ylabel="test risk")
    few_log_ticks(axes.yaxis)
    figure.legend(loc="outside right upper", title="samples P")
    return figure


def _some(values: list[float]) -> list[float]:
    if len(values) <= LINES:
        return values
    return [values[round(i * (len(values) - 1) / (LINES - 1))] for i in range(LINES)]


def _render(
    result: Forecast,
    recommendation: str,
    figures: Mapping[str, Markup],
    metadata: Mapping[str, Any],
    spending: pd.DataFrame | None,
) -> str:
    style = resources.files("ridgescope.analysis.report").joinpath("style.css").read_text(encoding="utf-8")
    heading = {"title": "Forecast", "created": ""}
    return (
        templates()
        .get_template("forecast.html")
        .render(
            **{key: str(metadata.get(key, default)) for key, default in heading.items()},
            style=Markup(style),
            pool=result.widths[0].pilots[0].size,
            recommendation=recommendation,
            **figures,
            headings=HEADINGS,
            rows=[_row(row) for row in result.optimal.to_dict("records")],
            spending_headings=SPENDING,
            spending=[_choice(row) for row in frontier(spending).to_dict("records")] if spending is not None else [],
            provenance={key: plain(value) for key, value in metadata.items() if key not in heading},
        )
    )


def _row(row: Mapping[Any, Any]) -> list[str]:
    said = row["status"] == "forecast"
    return [
        "infinite or given" if math.isinf(row["width"]) else f"{row['width']:g}",
        f"{row['P']:g}",
        number(row["risk"]) if said else "undetermined",
        f"{number(row['risk_low'])} to {number(row['risk_high'])}" if said else "",
        "" if math.isnan(row["accuracy"]) or not said else f"{100 * row['accuracy']:.1f} %",
        number(row["ridge"], 2),
        f"{number(row['ridge_low'], 2)} to {number(row['ridge_high'], 2)}",
        number(row["kappa"], 2),
        row["regime"],
        f"{row['members']}",
        row["extrapolation"],
        row["needed"],
    ]


def _choice(row: Mapping[Any, Any]) -> list[str]:
    numbers = [number(row[key], 2) for key in ("ridge",)] + [number(row["risk"])]
    costs = [number(row[key], 2) for key in ("flops", "seconds_here", "gpu_seconds", "gpu_kwh")]
    return [f"{row['P']:g}", f"{row['width']:g}", f"{row['members']:g}", *numbers, *costs]


def frontier(spending: pd.DataFrame) -> pd.DataFrame:
    """The choices that no other beats in both risk and FLOPs, by FLOPs."""
    if not {"flops", "risk"} <= set(spending.columns):
        raise UserError("the table of choices must have columns flops and risk")
    ordered = spending.sort_values(["flops", "risk"])
    return ordered[ordered["risk"] < ordered["risk"].cummin().shift(fill_value=math.inf)]
