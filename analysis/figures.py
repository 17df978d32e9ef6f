"""The figures of the report: what the theory predicts, beside what was measured.

Every function takes the tables of ``analysis.verdict`` and returns a matplotlib ``Figure`` for one model.
Widths run from light to dark in one colour scale, theory is black, and the infinite-width limit is an
orange line, in every figure. Error bars are one standard error over networks. Two columns of a paper wide
(7 inches).
"""

from collections.abc import Callable
from itertools import cycle, product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ridgescope.analysis.cells import kappa_parts
from ridgescope.analysis.drawing import (
    BLUE,
    GREEN,
    LINE_STYLES,
    ORANGE,
    PURPLE,
    diagonal,
    few_log_ticks,
    identity_line,
    infinite_marker,
    log_ticks,
    new_figure,
    paper_style,
    points,
    values,
    width_colour,
    width_legend,
)


def kappa_figure(table: pd.DataFrame) -> Figure:
    """Predicted against measured kappa and, below, the deviation: of kernels (left), of networks (right)."""
    infinite = table.drop_duplicates(["P", "ridge"])
    with paper_style():
        figure = new_figure(4.6)
        (kernels, trained), below = figure.subplots(2, 2, sharex="col", height_ratios=(2, 1))
        for width, rows in table.groupby("width"):
            colour: dict[str, Any] = {"color": width_colour(table, width)}
            for pair, *columns in (
                ((kernels, below[0]), "theory_width_kappa1", "kappa_entk", "kappa_deviation"),
                ((trained, below[1]), "kappa_entk", "kappa_risk", "kappa_network_deviation"),
            ):
                _measured_points(pair, rows, *columns, **colour)
        diamond: dict[str, Any] = {"color": ORANGE, "fmt": "D", "mfc": "none", "ms": 7}
        columns = ["theory_kappa", "kappa_infinite", "kappa_infinite_deviation"]
        _measured_points((kernels, below[0]), infinite, *columns, **diamond)
        kernels.set(ylabel="κ of the kernel (resolvent)", title="Kernels")
        trained.set(ylabel="κ of the network (risk ratio)", title="Trained networks")
        below[0].set(xlabel="κ predicted by the theory", ylabel="deviation, %")
        below[1].set(xlabel="κ of the network's kernel (resolvent)")
        for axes, lower in zip((kernels, trained), below, strict=True):
            if not axes.has_data():
                axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center")
                continue
            axes.set(xscale="log", yscale="log")
            diagonal(axes)
            few_log_ticks(axes.xaxis)
            few_log_ticks(axes.yaxis)
            lower.axhline(0, color="#555555", ls="--", lw=1, zorder=0)
        width_legend(figure, table, [infinite_marker(), identity_line()])
    return figure


def kappa_parts_figure(table: pd.DataFrame) -> Figure:
    """Shares of the effective ridge per cell: explicit (lam), finite data, finite width."""
    return _size_ridge_grid(kappa_parts(table), _stack_shares, "share of κ")


def risk_against_width(table: pd.DataFrame) -> Figure:
    """Test risk against width, one panel per sample size (rows) and ridge (columns)."""
    return _size_ridge_grid(table, _risk_panel, "test risk")


def kappa_against_width(table: pd.DataFrame) -> Figure:
    """kappa of the networks' kernels against width, one panel per sample size (rows) and ridge (columns)."""
    return _size_ridge_grid(table, _kappa_panel, "κ of the kernel")


def risk_against_size(table: pd.DataFrame) -> Figure:
    """Test risk against the number of training samples, one panel per ridge."""
    ridges = values(table["ridge"])
    with paper_style():
        figure = new_figure(3.2, len(ridges) + 1)
        grid = figure.subplots(1, len(ridges), squeeze=False, sharey=True)
        for axes, ridge in zip(grid[0], ridges, strict=True):
            rows = table[table["ridge"] == ridge].sort_values("P")
            for width, cells in rows.groupby("width"):
                points(axes, cells, "P", "network_test", color=width_colour(table, width), ls="-", lw=0.8)
            limit = rows.drop_duplicates("P")
            points(axes, limit, "P", "infinite_heldout", color=ORANGE, fmt="D", mfc="none", ms=7)
            axes.plot(limit["P"], limit["theory_test"], color="black")
            log_ticks(axes, limit["P"])
            axes.set(xlabel="training samples P", title=f"ridge λ = {ridge:g}")
        grid[0, 0].set_ylabel("test risk")
        theory = Line2D([], [], color="black", label="theory, infinite width")
        width_legend(figure, table, [infinite_marker(), theory])
    return figure


def train_test_figure(table: pd.DataFrame) -> Figure:
    """Train against test risk. The theory says train = (lam/kappa)^2 test: lines of constant kappa."""
    ridges = values(table["ridge"])
    with paper_style():
        figure = new_figure(3.2, len(ridges) + 1)
        grid = figure.subplots(1, len(ridges), squeeze=False)
        for axes, ridge in zip(grid[0], ridges, strict=True):
            rows = table[table["ridge"] == ridge]
            for width, cells in rows.groupby("width"):
                points(axes, cells, "network_train", "network_test", color=width_colour(table, width))
            limit = rows.drop_duplicates("P").sort_values("P")
            axes.plot(limit["theory_train"], limit["theory_test"], "*-", color="black", ms=8)
            for train, test, size in limit[["theory_train", "theory_test", "P"]].dropna().itertuples(index=False):
                axes.annotate(
                    f"P = {size:g}",
                    (train, test),
                    (0, -14),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
            axes.set(xlabel="training risk", title=f"ridge λ = {ridge:g}", xscale="log")
            axes.margins(0.18)
            few_log_ticks(axes.xaxis)
        grid[0, 0].set_ylabel("test risk")
        theory = Line2D([], [], color="black", marker="*", ms=8, label="theory, infinite width")
        width_legend(figure, table, [theory])
    return figure


def spectrum_figure(spectrum: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Eigenvalues of the infinite-width kernel with kappa marked, and the target power not yet explained."""
    spectrum = spectrum.sort_values("index")
    rest = 1 - spectrum["target_power"].cumsum() / spectrum["target_power"].sum()
    kappas = table.drop_duplicates(["P", "ridge"]).sort_values("theory_kappa")
    with paper_style():
        figure = new_figure(3.2)
        eigenvalues, power = figure.subplots(1, 2)
        positive = spectrum["eigenvalue"] > 0
        eigenvalues.loglog(spectrum["index"][positive], spectrum["eigenvalue"][positive], color=BLUE)
        remaining = rest > 1e-12  # after the last mode there is rounding error only
        power.loglog(spectrum["index"][remaining], rest[remaining], color=BLUE)
        lines = kappas[["P", "ridge", "theory_kappa"]].dropna().itertuples(index=False)
        for style, (size, ridge, kappa) in zip(cycle(LINE_STYLES), lines, strict=False):
            learned = int((spectrum["eigenvalue"] > kappa).sum())
            eigenvalues.axhline(kappa, label=f"P = {size:g}, λ = {ridge:g}", **style)
            power.axvline(max(learned, 1), **style)
        eigenvalues.set(xlabel="mode", ylabel="eigenvalue", title="Kernel spectrum and κ")
        power.set(xlabel="mode", ylabel="share of target power", title="Target power beyond each mode")
        if kappas["theory_kappa"].notna().any():
            figure.legend(loc="outside lower center", ncols=3, title="κ predicted for")
    return figure


def links_figure(verdicts: pd.DataFrame) -> Figure:
    """Heat table: deviation of every claim (rows) at every width (columns), with its verdict."""
    claims = list(dict.fromkeys(verdicts["claim"]))
    scopes = sorted(verdicts["scope"].unique(), key=_scope_order)
    with paper_style():
        figure = new_figure(0.9 + 0.36 * len(claims))
        axes = figure.subplots()
        by_place = verdicts.set_index(["claim", "scope"])
        deviation = by_place["deviation"].unstack().reindex(index=claims, columns=scopes).to_numpy(float)
        image = axes.imshow(100 * deviation, cmap="PuOr_r", norm=TwoSlopeNorm(0, -20, 20), aspect="auto", alpha=0.85)
        for row in verdicts.to_dict("records"):
            claim, scope = row["claim"], row["scope"]
            place = (scopes.index(scope), claims.index(claim))
            mark = {"holds": "✓", "fails": "✗"}.get(row["verdict"], "?")
            text = f"{100 * row['deviation']:+.1f} {mark}" if np.isfinite(row["deviation"]) else "\N{EN DASH}"
            strong = abs(row["deviation"]) > 0.13
            axes.text(*place, text, ha="center", va="center", fontsize=8, color="white" if strong else "black")
        axes.set_xticks(range(len(scopes)), [scope.replace("width ", "") for scope in scopes])
        axes.set_yticks(range(len(claims)), [_claim_label(verdicts, claim) for claim in claims])
        axes.set_xlabel("width")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, label="deviation, %", extend="both", fraction=0.05, pad=0.02)
    return figure


def _size_ridge_grid(table: pd.DataFrame, draw: Callable[[Axes, pd.DataFrame], None], ylabel: str) -> Figure:
    """One panel per sample size (rows) and ridge (columns), width along the bottom, one legend for all."""
    sizes, ridges = values(table["P"]), values(table["ridge"])
    with paper_style():
        figure = new_figure(1.0 + 1.9 * len(sizes), len(ridges))
        grid = figure.subplots(len(sizes), len(ridges), squeeze=False, sharex=True)
        for axes, (size, ridge) in zip(grid.flat, product(sizes, ridges), strict=True):
            rows = table[(table["P"] == size) & (table["ridge"] == ridge)].sort_values("width")
            if len(rows):
                draw(axes, rows)
            axes.set_title(f"P = {size:g}, λ = {ridge:g}")
        for axes in grid[-1]:
            axes.set_xlabel("width")
        for axes in grid[:, 0]:
            axes.set_ylabel(ylabel)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
    return figure


def _risk_panel(axes: Axes, rows: pd.DataFrame) -> None:
    limit = rows.iloc[0]
    axes.axhline(limit["infinite_test"], color=ORANGE, ls="--", label="infinite-width kernel, measured")
    axes.axhline(limit["theory_test"], color="black", ls=":", label="theory, infinite width")
    axes.plot(rows["width"], rows["theory_width_test"], color="black", label="theory with N_eff")
    axes.plot(rows["width"], rows["block_test"], color=PURPLE, ls="-", label="finite-width law")
    # drawn side by side: the two agree so well that one would hide the other
    for column, shift, options in (
        ("krr_test", 0.96, {"color": BLUE, "fmt": "s", "mfc": "none", "label": "kernel at initialisation"}),
        ("network_test", 1.04, {"color": GREEN, "fmt": "o", "label": "trained networks"}),
    ):
        points(axes, rows.assign(place=rows["width"] * shift), "place", column, **options)
    log_ticks(axes, rows["width"])


def _kappa_panel(axes: Axes, rows: pd.DataFrame) -> None:
    axes.axhline(rows.iloc[0]["kappa_infinite"], color=ORANGE, ls="--", label="infinite-width kernel, measured")
    axes.plot(rows["width"], rows["theory_width_kappa1"], color="black", label="theory with N_eff")
    axes.plot(rows["width"], rows["block_kappa1"], color=PURPLE, label="finite-width law")
    kernel: dict[str, Any] = {"color": BLUE, "fmt": "s", "mfc": "none", "label": "kernel at initialisation"}
    points(axes, rows, "width", "kappa_entk", **kernel)
    log_ticks(axes, rows["width"])


def _stack_shares(axes: Axes, rows: pd.DataFrame) -> None:
    place = np.arange(len(rows), dtype=np.float64)
    bottom = np.zeros(len(rows))
    for column, label, colour, hatch in (
        ("explicit", "explicit, λ", GREEN, ""),
        ("data_part", "finite data, P", BLUE, ""),
        ("width_part", "finite width, N", ORANGE, "//"),
    ):
        share = (rows[column] / rows["kappa_2"]).to_numpy(float)
        axes.bar(place, np.nan_to_num(share), 0.75, bottom, label=label, color=colour, hatch=hatch, ec="white")
        bottom += np.nan_to_num(share)
    for x, kappa in zip(place.tolist(), rows["kappa_2"], strict=True):
        text = f"{kappa:.2g}" if np.isfinite(kappa) else "no κ"
        axes.text(x, 1.02 if np.isfinite(kappa) else 0.02, text, ha="center", va="bottom", fontsize=7)
    axes.set_xticks(place, [f"{width:g}" for width in rows["width"]])
    axes.set_ylim(0, 1.15)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.grid(visible=False)


def _measured_points(
    pair: tuple[Axes, Axes], rows: pd.DataFrame, predicted: str, measured: str, deviation: str, **options: Any
) -> None:
    """The points on the first axes, and their relative deviation in percent on the second."""
    rows = rows[(rows[predicted] > 0) & (rows[measured] > 0)]
    points(pair[0], rows, predicted, measured, **options)
    in_percent = {name: 100 * rows[name] for name in (deviation, f"{deviation}_se")}
    points(pair[1], rows.assign(**in_percent), predicted, deviation, **options)


def _scope_order(scope: str) -> tuple[int, float]:
    return (0, 0.0) if scope == "all" else (1, float(scope.removeprefix("width ")))


def _claim_label(verdicts: pd.DataFrame, claim: str) -> str:
    row = verdicts[verdicts["claim"] == claim].iloc[0]
    return f"{row['label']} (±{100 * row['tolerance']:g} %)"
