"""An audit in the terminal: kappa by every route, verdicts, what was found, and where the risk comes from."""

from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgescope.analysis.audit import ELLIPTICAL, GAUSSIAN, ROUTES
from ridgescope.analysis.faults import Finding
from ridgescope.analysis.joint import kappa_table
from ridgescope.analysis.report.audit_page import kappa_line, network_line, term_line
from ridgescope.analysis.report.terminal import COLOURS, encodable, print_verdicts
from ridgescope.analysis.report.text import DASH
from ridgescope.analysis.verdict import broken_links

SHORT = {"resolvent": "resolv.", "left_out": "left-out", "loo": "LOO", "ratio": "ratio", "modes": "modes"}


def print_audit(
    *,
    table: pd.DataFrame,
    verdicts: pd.DataFrame,
    findings: Sequence[Finding],
    notes: Sequence[str],
    networks: pd.DataFrame,
    attribution: pd.DataFrame,
    console: Console,
) -> None:
    """Everything that the page says, in 100 columns."""

    def line(text: str, style: str = "") -> None:
        console.print(Text(encodable(console, text), style=style))

    controls = verdicts["model"].isin([GAUSSIAN, ELLIPTICAL])
    print_verdicts(verdicts[~controls], console)
    for model, sentence in broken_links(verdicts[controls]).items():
        line(f"\n{model}: {sentence}")
    line("\nκ by every route and the risk, in percent off what the spectrum predicts", "bold")
    console.print(_kappas(table, console))
    line("± is one standard error over training sets, p that of exact agreement of all routes,", "dim")
    line("Gauss and norms the Gaussian and the elliptical control.", "dim")
    if len(networks):
        line("\nTrained networks", "bold")
        console.print(_networks(console, networks))
    if len(attribution):
        line("\nWhere the risk of kernel regression comes from", "bold")
        console.print(_terms(console, attribution))
    for finding in findings:
        line(f"\n{finding.link}: {finding.sentence}.", "bold")
    for note in notes:
        line(f"{note}.", "yellow")


def _kappas(table: pd.DataFrame, console: Console) -> Table:
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for heading in ("points", "P", "λ", *(SHORT[route] for route in ROUTES[1:]), "risk", "p"):
        shown.add_column(encodable(console, heading), justify="left" if heading == "points" else "right")
    for row in map(kappa_line, kappa_table(table).to_dict("records")):
        routes = [text.replace(" %", "").replace(" ± ", "±") for text in row["routes"]]
        model = {GAUSSIAN: "Gauss", ELLIPTICAL: "norms"}.get(row["model"], "data")
        joint = DASH if "need" in row["joint"] else row["joint"]
        values = (model, row["P"], row["ridge"], *routes, row["risk"].removesuffix(" %"), joint)
        shown.add_row(*(Text(encodable(console, value)) for value in values))
    return shown


def _networks(console: Console, networks: pd.DataFrame) -> Table:
    shown = Table(box=None, padding=(0, 1), header_style="dim")
    for heading in ("network", "test risk", "kernel", "acts like", "λ", "λ acting"):
        shown.add_column(encodable(console, heading), justify="right")
    for row in map(network_line, networks.to_dict("records")):
        values = (row["name"], *row["values"][:2], row["reading"], *row["acting"][:2])
        shown.add_row(*(Text(encodable(console, value)) for value in values))
    return shown


def _terms(console: Console, attribution: pd.DataFrame) -> Table:
    shown = Table(box=None, padding=(0, 1), header_style="dim")
    for heading in ("of", "term", "measured", "±", "theory", "verdict"):
        shown.add_column(encodable(console, heading), justify="left" if heading in ("of", "term") else "right")
    for row in map(term_line, attribution.to_dict("records")):
        values = (row["what"], row["term"], row["measured"], row["half"], row["predicted"])
        verdict = Text(row["verdict"], style=COLOURS[row["verdict"]])
        shown.add_row(*(Text(encodable(console, value)) for value in values), verdict)
    return shown
