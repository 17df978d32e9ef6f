"""kappa by every route relative to the spectrum's prediction, for the data and the two controls."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from ridgescope.analysis.audit import ROUTES
from ridgescope.analysis.drawing import few_log_ticks, new_figure, paper_style

ROUTE_NAMES = {
    "spectrum": "spectrum (theory)",
    "resolvent": "resolvent",
    "left_out": "left-out variance",
    "loo": "leave-one-out",
    "ratio": "risk ratio",
    "modes": "modes",
}

MARKERS = dict(zip(ROUTES[1:], "osD^v", strict=True))


def audit_figure(kappas: pd.DataFrame) -> Figure:
    """One panel per pool; a colour per route, a line per P (solid for the largest), error bars over training sets.

    kappas: of ``joint.kappa_table``.
    """
    models = list(dict.fromkeys(kappas["model"]))
    sizes = sorted(kappas["P"].unique().tolist())
    with paper_style():
        figure = new_figure(3.0, columns=len(models))
        panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
        for panel, model in zip(panels, models, strict=True):
            panel.axhline(0, color="#555555", ls="--", lw=1)
            for colour, route in zip(mpl.colormaps["tab10"].colors, ROUTES[1:], strict=False):  # type: ignore[attr-defined]
                for i, size in enumerate(sizes):
                    rows = kappas[(kappas["model"] == model) & (kappas["P"] == size)].sort_values("ridge")
                    last = i == len(sizes) - 1
                    panel.errorbar(
                        rows["ridge"],
                        100 * rows[route],
                        100 * rows[f"{route}_se"].fillna(0.0),
                        color=colour,
                        marker=MARKERS[route],
                        ls="-" if last else ":",
                        alpha=0.4 + 0.6 * (i + 1) / len(sizes),
                        label=ROUTE_NAMES[route] if last else None,
                    )
            panel.set(title=model, xlabel="ridge λ", xscale="log")
            few_log_ticks(panel.xaxis)
        panels[0].set_ylabel("κ over the spectrum's, %")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure
