"""The regime map as a picture: one field per cell, coloured by the kernel that describes its networks."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ridgescope.analysis.drawing import new_figure, paper_style, values

# Okabe and Ito; the undetermined is no colour
FIELDS = {
    "initial": "#56B4E9",
    "final": "#E69F00",
    "neither": "#D55E00",
    "not initial": "#F7DCA0",
    "undetermined": "#e3e3e3",
}
WORDS = {
    "initial": "the kernel at initialisation",
    "final": "the kernel after training only",
    "neither": "neither",
    "not initial": "not the initial one",
    "undetermined": "undetermined",
}


def regimes_figure(table: pd.DataFrame) -> Figure:
    """Panels: sample size (rows) and ridge (columns); in each, width along and laziness alpha up.

    The numbers are network over regression with the initial kernel (above) and with the final one (below), minus one in
    percent.
    """
    sizes, ridges, alphas, widths = (values(table[name]) for name in ("P", "ridge", "alpha", "width"))
    with paper_style():
        figure = new_figure(0.9 + len(sizes) * (0.5 + 0.42 * len(alphas)), len(ridges))
        grid = figure.subplots(len(sizes), len(ridges), squeeze=False, sharex=True, sharey=True)
        for axes_row, size in zip(grid, sizes, strict=True):
            for axes, ridge in zip(axes_row, ridges, strict=True):
                cells = table[(table["P"] == size) & (table["ridge"] == ridge)]
                _fields(axes, cells, alphas, widths)
                axes.set_title(f"P = {size:g}, λ = {ridge:g}")
            axes_row[0].set_ylabel("laziness alpha")
        for axes in grid[-1]:
            axes.set_xlabel("width")
        handles = [Patch(color=FIELDS[name], label=words) for name, words in WORDS.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _fields(axes: Axes, cells: pd.DataFrame, alphas: list[Any], widths: list[Any]) -> None:
    for row in cells.to_dict("records"):
        place = widths.index(row["width"]), alphas.index(row["alpha"])
        axes.add_patch(Rectangle((place[0] - 0.47, place[1] - 0.46), 0.94, 0.92, color=FIELDS[row["regime"]]))
        shown = [
            f"{100 * row[name]:+.1f}" if np.isfinite(row[name]) else "\N{EN DASH}" for name in ("initial", "final")
        ]
        axes.text(*place, "\n".join(shown), ha="center", va="center", fontsize=7)
    axes.set(xlim=(-0.55, len(widths) - 0.45), ylim=(-0.55, len(alphas) - 0.45))
    axes.set_xticks(range(len(widths)), [f"{width:g}" for width in widths])
    axes.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
