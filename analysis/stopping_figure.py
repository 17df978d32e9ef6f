"""Early stopping: the test risk along training beside gradient flow, and the ridge that each time acts like."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ridgescope.analysis.drawing import BLUE, GREEN, ORANGE, few_log_ticks, new_figure, paper_style, points, values

PANELS = 4  # widths in one figure


def stopping_figure(table: pd.DataFrame) -> Figure:
    """Columns: widths. Above: test risk along time; below: acting ridge times t. ``table``: of one model and one P."""
    networks, infinite = table[table["who"] == "network"], table[table["who"] == "infinite"]
    widths = values(networks["width"])
    widths = widths if len(widths) <= PANELS else [widths[0], *widths[-PANELS + 1 :]]
    with paper_style():
        figure = new_figure(4.6, len(widths))
        grid = figure.subplots(2, len(widths), squeeze=False, sharex=True, sharey="row")
        for (above, below), width in zip(grid.T, widths, strict=True):
            cell = _means(networks[(networks["width"] == width) & (networks["time"] > 0)])
            _risks(above, cell, _means(infinite))
            _ridges(below, cell)
            above.set_title(f"width {width:g}")
            below.set_xlabel("time t of the flow")
        grid[0, 0].set_ylabel("test risk")
        grid[1, 0].set_ylabel("acting ridge, times t")
        few_log_ticks(grid[1, 0].xaxis)
        handles = [artist for axes in grid[:, 0] for artist in axes.get_legend_handles_labels()[0]]
        labels = [label for axes in grid[:, 0] for label in axes.get_legend_handles_labels()[1]]
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _risks(axes: Axes, cell: pd.DataFrame, infinite: pd.DataFrame) -> None:
    if len(infinite):
        axes.plot(infinite["time"], infinite["infinite_flow_test"], color=ORANGE, ls="--", label="flow, infinite width")
        axes.plot(infinite["time"], infinite["theory_flow_test"], color="black", ls=":", label="theory of it")
    axes.plot(cell["time"], cell["flow_test"], color=BLUE, label="flow, kernel at initialisation")
    axes.axhline(cell["best_ridge_test"].iloc[0], color="#555555", ls="-.", lw=1, label="best ridge with that kernel")
    points(axes, cell, "time", "network_test", color=GREEN, label="networks")
    axes.set_xscale("log")


def _ridges(axes: Axes, cell: pd.DataFrame) -> None:
    axes.axhline(1, color="#555555", ls="--", lw=1, label="λ = 1/t")
    axes.plot(
        cell["time"], cell["flow_ridge"] * cell["time"], color=BLUE, ls=":", label="λ nearest to the flow's filter"
    )
    acting = cell.assign(scaled=cell["acting_ridge"] * cell["time"])
    points(axes, acting, "time", "scaled", color=GREEN, fmt="s", mfc="none", label="λ by the training risk")
    axes.set(xscale="log", ylim=(0, None))


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over networks (or draws) at each step, with ``*_se`` of what is drawn with an error."""
    numeric = rows.select_dtypes(["number"]).columns.drop("step")
    grouped = rows.groupby("step")
    mean = grouped[list(numeric)].mean()
    if "acting_ridge" in numeric:  # spans decades
        mean["acting_ridge"] = np.exp(np.log(rows["acting_ridge"]).groupby(rows["step"]).mean())
    drawn = [name for name in ("network_test",) if name in numeric]
    return mean.join(grouped[drawn].sem().add_suffix("_se")).reset_index()
