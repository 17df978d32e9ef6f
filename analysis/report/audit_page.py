"""The page and the tables of an audit."""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from ridgescope.analysis.audit import ROUTES
from ridgescope.analysis.audit_figure import ROUTE_NAMES, audit_figure
from ridgescope.analysis.drawing import figure_bytes
from ridgescope.analysis.faults import Finding
from ridgescope.analysis.joint import kappa_table
from ridgescope.analysis.report.page import claim_lines, inline_svg, parquet_bytes, plain, replace_file, templates
from ridgescope.analysis.report.text import MARKS, RULE, number, percent
from ridgescope.analysis.verdict import chains


def write_audit(
    folder: Path,
    *,
    table: pd.DataFrame,
    verdicts: pd.DataFrame,
    findings: Sequence[Finding],
    notes: Sequence[str],
    networks: pd.DataFrame,
    attribution: pd.DataFrame,
    metadata: Mapping[str, Any],
) -> Path:
    """index.html, figures, and every table as Parquet in ``folder``; the page is written last."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    kappas = kappa_table(table)
    figure = audit_figure(kappas)
    svg = figure_bytes(figure, "svg")
    replace_file(folder / "figures" / "kappa.svg", svg)
    replace_file(folder / "figures" / "kappa.pdf", figure_bytes(figure, "pdf"))
    tables = {"audit": table, "kappa": kappas, "verdicts": verdicts, "networks": networks, "attribution": attribution}
    for name, frame in tables.items():
        if len(frame):
            replace_file(folder / f"{name}.parquet", parquet_bytes(frame))
    style = resources.files("ridgescope.analysis.report").joinpath("style.css").read_text(encoding="utf-8")
    models = []
    for model in dict.fromkeys(verdicts["model"]):
        mine = verdicts[verdicts["model"] == model]
        claims = [claim_lines(rows) for _, rows in mine.groupby("claim", sort=False)]
        models.append({"model": model, "chain": chains(mine)[str(model)], "claims": claims})
    page = (
        templates()
        .get_template("audit.html")
        .render(
            title=str(metadata["title"]),
            created=str(metadata.get("created", "")),
            style=Markup(style),
            rule=RULE,
            marks=MARKS,
            models=models,
            kappas=[kappa_line(row) for row in kappas.to_dict("records")],
            routes=[ROUTE_NAMES[route] for route in ROUTES[1:]],
            findings=findings,
            notes=notes,
            networks=[network_line(row) for row in networks.to_dict("records")],
            terms=[term_line(row) for row in attribution.to_dict("records")],
            drawing=inline_svg(svg.decode(), "kappa", "kappa by every route"),
            provenance={key: plain(value) for key, value in metadata.items() if key not in ("title", "created")},
        )
    )
    replace_file(folder / "index.html", page.encode())
    return folder / "index.html"


def kappa_line(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of ``kappa_table`` as text."""
    routes = [
        f"{percent(row[route])} ± {100 * row[f'{route}_se']:.1f}"
        if np.isfinite(row[f"{route}_se"])
        else percent(row[route])
        for route in ROUTES[1:]
    ]
    return {
        "model": row["model"],
        "P": f"{row['P']:g}",
        "ridge": f"{row['ridge']:.3g}",
        "kappa": number(row["kappa"]),
        "routes": routes,
        "predicted": f"{percent(row['uneven_resolvent'])}, {percent(row['uneven_modes'])}",
        "joint": row["joint_note"] or f"{row['joint_p']:.2g}",
        "risk": percent(row["risk_deviation"]),
        "gcv": percent(row["gcv"]),
        "loo": percent(row["loo_risk"]),
        "uneven": f"{100 * row['unevenness']:.0f} % ({100 * row['unevenness_gaussian']:.0f} %)"
        if np.isfinite(row["unevenness"])
        else "undetermined",
    }


def network_line(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "name": f"seed {row['seed']}, draw {row['draw']}",
        "values": [number(row[key]) for key in ("network_test", "krr_test", "kappa_network", "kappa_kernel")],
        "reading": row["reading"],
        "acting": [number(row[key]) for key in ("ridge", "acting_ridge", "acting_time", "acting_noise")],
    }


def term_line(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "what": row.get("who", ""),
        "term": row["term"],
        "measured": number(row["measured"]) if "measured" in row else "",
        "half": number((row["high"] - row["low"]) / 2, 2) if "high" in row else "",
        "predicted": number(row["predicted"]) if "predicted" in row else "",
        "verdict": row["verdict"],
        "mark": MARKS[row["verdict"]],
        "note": row["note"],
    }
