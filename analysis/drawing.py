"""How the figures look: a style for a paper, colours that all can tell apart, labels that do not collide."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",  # text stays text: it can be searched, and edited for a paper
    "svg.hashsalt": "ridgescope",  # the same tables give the same bytes
    "pdf.fonttype": 42,
}

# Okabe and Ito's palette, which remains distinct in the common forms of colour blindness
ORANGE, BLUE, GREEN, PURPLE = "#D55E00", "#0072B2", "#009E73", "#CC79A7"
WIDTH_INCHES = 7.0

LINE_STYLES: tuple[dict[str, Any], ...] = tuple(
    {"color": colour, "ls": dashes, "lw": 1.1}
    for dashes in ("-", "--", ":", "-.")
    for colour in (ORANGE, GREEN, PURPLE, "#555555")
)


@contextmanager
def paper_style() -> Iterator[None]:
    with mpl.rc_context(STYLE):
        yield


def figure_bytes(figure: Figure, file_format: str) -> bytes:
    """The figure as 'svg' or 'pdf', without dates: the same tables give the same bytes."""
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    if file_format not in undated:
        raise ValueError(f"unknown figure format {file_format!r}; use 'svg' or 'pdf'")
    buffer = BytesIO()
    with paper_style():
        figure.savefig(buffer, format=file_format, metadata=undated[file_format])
    return buffer.getvalue()


def new_figure(height: float, columns: int = 1) -> Figure:
    figure = Figure(figsize=(max(WIDTH_INCHES, 2.3 * columns), height))
    FigureCanvasAgg(figure)
    return figure


def values(column: pd.Series) -> list[Any]:
    """The distinct values as Python numbers, in rising order."""
    return sorted(column.unique().tolist())


def points(axes: Axes, rows: pd.DataFrame, x: str, y: str, fmt: str = "o", **options: Any) -> None:
    """Column ``y`` against ``x``, with error bars of one standard error from the ``*_se`` columns."""
    rows = rows.dropna(subset=[x, y])
    if rows.empty:
        return
    errors = {
        f"{side}err": rows[f"{name}_se"].fillna(0.0).to_numpy()
        for side, name in (("x", x), ("y", y))
        if f"{name}_se" in rows
    }
    axes.errorbar(rows[x].to_numpy(), rows[y].to_numpy(), fmt=fmt, **{"ls": "none", **errors, **options})


def width_colour(table: pd.DataFrame, width: Any) -> tuple[float, float, float, float]:
    """Light for the narrowest network of ``table``, dark for the widest."""
    widths = values(table["width"])
    return ordered_colour(widths.index(width), len(widths))


def ordered_colour(place: int, count: int) -> tuple[float, float, float, float]:
    """Of the place-th of ``count`` ordered values: light for the first, dark for the last."""
    return mpl.colormaps["viridis_r"](0.12 + 0.83 * place / max(count - 1, 1))


def width_legend(figure: Figure, table: pd.DataFrame, others: list[Line2D]) -> None:
    handles = [
        Line2D([], [], color=width_colour(table, width), marker="o", ls="none", label=f"{width:g}")
        for width in values(table["width"])
    ]
    figure.legend(handles=[*handles, *others], loc="outside right upper", title="width")


def infinite_marker() -> Line2D:
    return Line2D([], [], color=ORANGE, marker="D", ms=7, mfc="none", ls="none", label="infinite")


def identity_line() -> Line2D:
    return Line2D([], [], color="#555555", ls="--", lw=1, label="equal")


def diagonal(axes: Axes) -> None:
    low = min(axes.get_xlim()[0], axes.get_ylim()[0])
    high = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color="#555555", ls="--", lw=1, zorder=0)
    axes.set(xlim=(low, high), ylim=(low, high))


def few_log_ticks(axis: Axis) -> None:
    """Few, plain labels on a logarithmic axis: matplotlib's own collide over one decade and vanish below."""
    low, high = axis.get_view_interval()
    decades = float(np.log10(high / low)) if low > 0 else 1.0
    if decades < 0.5:
        axis.set_major_locator(MaxNLocator(3))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1.7 else (1,), numticks=6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def log_ticks(axes: Axes, places: pd.Series) -> None:
    axes.set_xscale("log")
    ticks = values(places)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
