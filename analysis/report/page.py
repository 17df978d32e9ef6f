"""The page: plain answer first, then verdicts, figures, and every number with the runs it came from.

``index.html`` holds everything it shows (SVG and CSS inline, no scripts, no fonts, no requests), so it
can be mailed, archived beside a paper, or opened from a cluster's file system. Files are replaced whole
or not at all.
"""

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ridgescope.analysis import figures
from ridgescope.analysis.cells import SETTING, cells, kappa_parts, setting_labels
from ridgescope.analysis.drawing import figure_bytes
from ridgescope.analysis.regimes import maps, regime_map
from ridgescope.analysis.regimes_figure import regimes_figure
from ridgescope.analysis.report.regimes import MAP_HEADINGS, regime_lines, regime_summary, scaling_lines
from ridgescope.analysis.report.stopping import BEST_HEADINGS, TIME_HEADINGS, stopping_figures, stopping_lines
from ridgescope.analysis.report.text import DASH, MARKS, RULE, interval, number, percent, rms_range
from ridgescope.analysis.scaling import scaling_table
from ridgescope.analysis.verdict import chains, evaluate


@dataclass(frozen=True)
class Drawing:
    """A figure of one model, with what a reader needs in order to read it."""

    kind: str
    name: str
    title: str
    svg: Markup


# kind, title, function of the table of cells, and the columns of which it shows at least one. The captions
# stand in the template.
FIGURES: tuple[tuple[str, str, Callable[[pd.DataFrame], Figure], tuple[str, ...]], ...] = (
    (
        "kappa",
        "Effective ridge: predicted against measured",
        figures.kappa_figure,
        ("kappa_deviation", "kappa_infinite_deviation", "kappa_network_deviation"),
    ),
    ("kappa_parts", "What the effective ridge is made of", figures.kappa_parts_figure, ("inverse_width",)),
    ("risk_width", "Test risk against width", figures.risk_against_width, ("krr_test", "network_test")),
    ("kappa_width", "Effective ridge of the kernel against width", figures.kappa_against_width, ("block_kappa1",)),
    (
        "risk_size",
        "Test risk against the number of training samples",
        figures.risk_against_size,
        ("network_test", "infinite_heldout"),
    ),
    ("train_test", "Training risk against test risk", figures.train_test_figure, ("network_train",)),
)
SPECTRUM = ("spectrum", "Spectrum of the infinite-width kernel")
LINKS = ("links", "Where each claim holds")
STOPPING = ("stopping", "Early stopping: along the flow, and the ridge it acts like")

# Columns of the table of cells: heading, column, whether an error is shown
CELL_COLUMNS = (
    ("test risk: network", "network_test", True),
    ("kernel at init.", "krr_test", True),
    ("kernel after", "krr_final_test", True),
    ("infinite width", "infinite_test", True),
    ("theory", "theory_test", False),
    ("theory, N_eff", "theory_width_test", False),
    ("finite-width law", "block_test", True),
    ("the same, any training set", "block_pool_test", False),
    ("training risk: network", "network_train", True),
    ("κ: network", "kappa_risk", True),
    ("kernel", "kappa_entk", True),
    ("infinite width", "kappa_infinite", True),
    ("theory, uneven points", "theory_kappa_uneven", False),
    ("theory, even points", "theory_kappa", False),
    ("theory, N_eff", "theory_width_kappa1", False),
    ("finite-width law", "block_kappa1", True),
    ("1/N_eff", "inverse_width", True),
)
NETWORK_COLUMNS = (
    ("width", "width"),
    ("P", "P"),
    ("λ", "ridge"),
    ("seed", "seed"),
    ("draw", "draw"),
    ("test risk", "network_test"),
    ("kernel at init.", "krr_test"),
    ("infinite width", "infinite_test"),
    ("κ by risk", "kappa_risk"),
    ("κ of kernel", "kappa_entk"),
)

IDENTITY = {"width", "P", "ridge", "seed", "draw"}  # given, not measured: shown as they were given


def write_report(
    networks: pd.DataFrame,
    spectra: pd.DataFrame,
    metadata: Mapping[str, Any],
    out_dir: Path,
    *,
    infinite: pd.DataFrame | None = None,
    verdicts: pd.DataFrame | None = None,
    attribution: pd.DataFrame | None = None,
    stopping: pd.DataFrame | None = None,
) -> Path:
    """Write index.html, figures/*.svg and *.pdf, networks, cells and verdicts (parquet; verdicts also csv).

    networks: one row per trained network; infinite: infinite-width kernels on many draws; spectra: data, model,
    index, eigenvalue, target_power, kernel; verdicts: of ``evaluate``, by default of the default claims;
    attribution: of ``experiment.project``, the terms of the risk in crossed cells; stopping: of the same, gradient
    flow beside the networks at every measured time; metadata: shown as provenance, 'title' and 'created' in the
    heading.
    Returns the path of the page, which is written last: where it exists, the rest does. Raises ``ValueError`` if
    ``networks`` lacks a column.
    """
    verdicts = evaluate(networks, infinite=infinite, stopping=stopping) if verdicts is None else verdicts
    table = cells(networks)
    labels = dict(zip(networks["run"], setting_labels(networks), strict=True))
    out_dir = Path(out_dir)
    (out_dir / "figures").mkdir(parents=True, exist_ok=True)
    regimes, scaling = regime_map(networks), scaling_table(networks, infinite)
    sections = []
    for model in map(str, dict.fromkeys(verdicts["model"])):
        flow = pd.DataFrame() if stopping is None or stopping.empty else stopping[stopping["run"].map(labels) == model]
        drawn = [(kind, kind, title, figure) for kind, title, figure in _figures(model, verdicts, table, spectra)]
        drawn += [(STOPPING[0], f"stopping_P{size}", STOPPING[1], figure) for size, figure in stopping_figures(flow)]
        drawings = [
            _saved(out_dir, kind, f"{_slug(model)}_{name}", title, figure) for kind, name, title, figure in drawn
        ]
        section = _section(model, verdicts, table, drawings)
        section |= {"attribution": _attribution(attribution, networks, model)}
        sections.append(section | {"stopping": stopping_lines(flow), "scaling": scaling_lines(scaling, model)})
    tables = {"networks": networks, "cells": table, "verdicts": verdicts, "regimes": regimes}
    if infinite is not None:
        tables["infinite"] = infinite
    for name, more in (("attribution", attribution), ("stopping", stopping), ("scaling", scaling)):
        if more is not None and len(more):
            tables[name] = more
    for name, frame in tables.items():
        replace_file(out_dir / f"{name}.parquet", parquet_bytes(frame))
    flat = verdicts.assign(runs=verdicts["runs"].map(" ".join))
    replace_file(out_dir / "verdicts.csv", flat.to_csv(index=False).encode())
    page = out_dir / "index.html"
    replace_file(page, _render(networks, verdicts, sections, _maps(out_dir, regimes), metadata).encode())
    return page


def _saved(out_dir: Path, kind: str, stem: str, title: str, figure: Figure) -> Drawing:
    """Write the figure as SVG and PDF, and return it for the page."""
    svg = figure_bytes(figure, "svg")
    replace_file(out_dir / "figures" / f"{stem}.svg", svg)
    replace_file(out_dir / "figures" / f"{stem}.pdf", figure_bytes(figure, "pdf"))
    return Drawing(kind, stem, title, inline_svg(svg.decode(), stem, title))


def _maps(out_dir: Path, regimes: pd.DataFrame) -> list[dict[str, Any]]:
    """Every regime map with its figure."""
    return [
        {
            "name": name,
            "summary": regime_summary(rows),
            "lines": regime_lines(rows),
            "drawing": _saved(out_dir, "regimes", f"{_slug(name)}_regimes", "Regime map", regimes_figure(rows)),
        }
        for name, rows in maps(regimes).items()
    ]


def summary(verdicts: pd.DataFrame) -> str:
    """The count of verdicts, in one sentence: models and claims over all cells, not per width."""
    overall = verdicts.loc[verdicts["scope"] == "all", "verdict"].value_counts()
    holds, fails, undetermined = (overall.get(verdict, 0) for verdict in MARKS)
    return f"Of {overall.sum()} claims {holds} hold, {fails} fail and {undetermined} are undetermined."


def kappa_sentence(table: pd.DataFrame) -> str:
    """What kappa is made of at the narrowest and the widest network, most data and smallest ridge."""
    hardest = table[(table["P"] == table["P"].max()) & (table["ridge"] == table["ridge"].min())]
    parts = kappa_parts(hardest).dropna(subset="kappa_2").sort_values("width")
    if parts.empty:
        return ""
    shares = [_shares(parts.iloc[0])] + ([_shares(parts.iloc[-1])] if len(parts) > 1 else [])
    first = parts.iloc[0]
    return f"At P = {first['P']:g} and λ = {first['ridge']:g}, {'; '.join(shares)}."


def _shares(row: pd.Series) -> str:
    names = {"explicit": "explicit ridge", "data_part": "finite data", "width_part": "finite width"}
    shares = {name: 100 * row[column] / row["kappa_2"] for column, name in names.items()}
    parts = [f"{share:.0f} % {name}" if share >= 0.5 else f"< 1 % {name}" for name, share in shares.items()]
    return f"κ at width {row['width']:g} is {number(row['kappa_2'], 2)} ({', '.join(parts)})"


def _figures(
    model: str, verdicts: pd.DataFrame, table: pd.DataFrame, spectra: pd.DataFrame
) -> list[tuple[str, str, Figure]]:
    of_model = table[table["setting"] == model]
    drawn = [(*LINKS, figures.links_figure(verdicts[verdicts["model"] == model]))]
    for kind, title, draw, shown in FIGURES:
        # without a ridge the training risk is zero, and the theory's ratio has nothing to say
        rows = of_model[of_model["ridge"] > 0] if kind == "train_test" else of_model
        if rows[list(shown)].notna().any(axis=None):
            drawn.append((kind, title, draw(rows)))
    identity = of_model.iloc[0]
    named = [column for column in SETTING if column in spectra]
    mine = (spectra[named] == identity[named]).all(axis=1)
    if mine.any():
        drawn.append((*SPECTRUM, figures.spectrum_figure(spectra[mine], of_model)))
    return drawn


def _section(model: str, verdicts: pd.DataFrame, table: pd.DataFrame, drawings: list[Drawing]) -> dict[str, Any]:
    mine, of_model = verdicts[verdicts["model"] == model], table[table["setting"] == model]
    identity = of_model.iloc[0]
    return {
        "model": model,
        "slug": _slug(model),
        "data": identity["data"],
        "description": f"{identity['depth']:g} hidden layers, {identity['activation']}, "
        f"{identity['parameterisation']} parameterisation, laziness alpha = {identity['alpha']:g}",
        "chain": chains(mine)[model],
        "kappa": kappa_sentence(of_model),
        "claims": [claim_lines(rows) for _, rows in mine.groupby("claim", sort=False)],
        "cells": [_cell(row) for row in of_model.to_dict("records")],
        "drawings": drawings,
    }


def _attribution(table: pd.DataFrame | None, networks: pd.DataFrame, model: str) -> list[dict[str, Any]]:
    """One block per crossed cell, ridge and predictor: its terms, each with what the theory says."""
    if table is None or table.empty:
        return []
    runs = set(networks.loc[setting_labels(networks) == model, "run"])
    mine = table[table["run"].isin(runs)]
    blocks = []
    for (width, size, ridge, who), rows in mine.groupby(["width", "P", "ridge", "who"], sort=True):
        first = rows.iloc[0]
        terms = [
            {
                "term": row["term"],
                "measured": number(row["measured"], 3),
                "half": number((row["high"] - row["low"]) / 2, 2),
                "predicted": number(row["predicted"], 3),
                "sets": number(row["predicted_sets"], 3),
                "sets_deviation": percent(row["deviation_sets"]),
                "sets_mark": MARKS.get(row["verdict_sets"], ""),
                "width": number(row["predicted_width"], 3),
                "deviation": percent(row["deviation"]),
                "verdict": row["verdict"],
                "mark": MARKS[row["verdict"]],
                "note": row["note"],
            }
            for row in rows.to_dict("records")
        ]
        title = (
            f"width {width:g}, P = {size:g}, λ = {ridge:g}, {'trained network' if who == 'network' else 'its kernel'}"
        )
        if len(terms) == 1:  # no design that could be split
            facts = terms[0]["note"]
        else:
            facts = (
                f"{first['seeds']:.0f} seeds x {first['draws']:.0f} draws, {first['excluded']:.0f} networks left out"
            )
            facts += f"; for errors of 1 % of the risk: {first['needed']}"
            facts += f"; theory: {first['theory']}" if first["theory"] else ""
        blocks.append({"title": title, "facts": facts, "terms": terms if len(terms) > 1 else []})
    return blocks


def claim_lines(rows: pd.DataFrame) -> dict[str, Any]:
    """Verdicts of one claim, over all cells and per width, as the templates show them."""
    lines = [_line(row) for row in rows.to_dict("records")]
    return {"overall": lines[0], "per_width": lines[1:]}


def _line(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        **{key: row[key] for key in ("label", "sentence", "link", "scope", "verdict", "note", "cells")},
        **{key: row[key] for key in ("required", "explanation")},
        **{key: row[key] for key in ("networks", "excluded")},
        "width": row["scope"].removeprefix("width "),
        "mark": MARKS[row["verdict"]],
        "tolerance": f"±{100 * row['tolerance']:g} %",
        "measured": number(row["measured"]),
        "predicted": number(row["predicted"]),
        "deviation": interval(row["low"], row["high"], row["deviation"]),
        "rms": rms_range(row["rms"], row["rms_low"], row["rms_high"]),
        "worst": percent(row["worst"]),
    }


def _cell(row: Mapping[Any, Any]) -> dict[str, Any]:
    values = []
    for _, column, with_error in CELL_COLUMNS:
        error = row[f"{column}_se"] if with_error else np.nan
        text = number(row[column])
        values.append(f"{text} ± {number(error, 1)}" if np.isfinite(error) and text != DASH else text)
    keys = ("networks", "excluded", "runs")
    return {
        "width": f"{row['width']:g}",
        "P": f"{row['P']:g}",
        "ridge": f"{row['ridge']:g}",
        "values": values,
        **{key: row[key] for key in keys},
    }


def templates() -> Environment:
    """Where pages come from: escaping on, a missing value is an error."""
    return Environment(
        loader=PackageLoader("ridgescope.analysis.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render(
    networks: pd.DataFrame,
    verdicts: pd.DataFrame,
    sections: list[dict[str, Any]],
    regimes: list[dict[str, Any]],
    metadata: Mapping[str, Any],
) -> str:
    style = resources.files("ridgescope.analysis.report").joinpath("style.css").read_text(encoding="utf-8")
    heading = {"title": "Ridge theory against trained networks", "created": ""}
    return (
        templates()
        .get_template("networks.html")
        .render(
            **{key: str(metadata.get(key, default)) for key, default in heading.items()},
            style=Markup(style),
            rule=RULE,
            marks=MARKS,
            summary=summary(verdicts),
            sections=sections,
            maps=regimes,
            map_headings=MAP_HEADINGS,
            stopping_headings=(BEST_HEADINGS, TIME_HEADINGS),
            cell_headings=[heading for heading, *_ in CELL_COLUMNS],
            network_headings=[heading for heading, _ in NETWORK_COLUMNS],
            networks=[
                # a run that trained several members together is linked by its first row
                _network(row) | {"first": first}
                for row, first in zip(networks.to_dict("records"), ~networks["run"].duplicated(), strict=True)
            ],
            not_converged=[_network(row) for row in networks[~networks["converged"].astype(bool)].to_dict("records")],
            provenance={key: plain(value) for key, value in metadata.items() if key not in heading},
        )
    )


def _network(row: Mapping[Any, Any]) -> dict[str, Any]:
    status = row["status"] if "status" in row else ("converged" if row["converged"] else "not converged")
    return {
        "run": row["run"],
        "member": row.get("member", ""),
        "model": row["model"],
        "status": status,
        "steps": f"{row.get('steps', 0):g}",
        "gap": number(row.get("optimality_gap", np.nan), 2),
        "values": [
            f"{row[column]:g}" if column in IDENTITY else number(row[column], 4) for _, column in NETWORK_COLUMNS
        ],
    }


def plain(value: Any) -> str:
    """A value of the provenance as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(inner) for inner in value)
    return str(value)


def inline_svg(svg: str, name: str, title: str) -> Markup:
    """The svg element alone, scaling with the page, its ids made unique among the figures of one page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    svg = svg.replace("*{stroke-linejoin", f'svg[data-figure="{name}"] *{{stroke-linejoin')
    # an HTML parser knows both namespaces; without their addresses the page names no host at all
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(title)}" data-figure="{name}"', 1))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def parquet_bytes(frame: pd.DataFrame) -> bytes:
    """A table as a Parquet file."""
    buffer = BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def replace_file(path: Path, content: bytes) -> None:
    """Write beside ``path`` and rename: a reader, or a crash, meets the old file or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)  # mkstemp makes it private, and a report is meant to be shared
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
