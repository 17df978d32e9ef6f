"""The verdict table in the terminal: 80 columns are enough, and a pipe or log file loses nothing."""

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgescope.analysis.report.text import DASH, MINUS, RULE, interval, number, percent
from ridgescope.analysis.verdict import broken_links

COLOURS = {"holds": "green", "fails": "bold red", "undetermined": "yellow"}


def print_verdicts(verdicts: pd.DataFrame, console: Console | None = None) -> None:
    """Print the table of ``evaluate``: per model and claim one line for all cells, then one per width."""
    console = console or Console(highlight=False)
    sentences = broken_links(verdicts)
    for model, rows in verdicts.groupby("model", sort=False):
        _print(console, "")
        console.rule(encodable(console, str(model)), characters="-" if _is_ascii(console) else "─")
        for _, claim in rows.groupby("claim", sort=False):
            first = claim.iloc[0]
            _print(console, "")
            _print(console, f"{first['sentence']} ({_bound(first)})", style="bold")
            console.print(_claim_table(console, claim))
        _print(console, "")
        _print(console, f"{model}: {sentences[str(model)]}")
    _print(console, "")
    _print(console, "± is half the 90 % interval; worst is the cell that deviates most.", style="dim")
    for word, meaning in RULE.items():
        _print(console, f"{word}: {meaning}", style="dim")


def _bound(first: pd.Series) -> str:
    sign = "at most +" if first["test"] == "at_most" else "within ±"
    return f"{sign}{100 * first['tolerance']:g} %{', required' if first['required'] else ''}"


def _claim_table(console: Console, claim: pd.DataFrame) -> Table:
    # fixed widths, so that the tables of all claims line up under one another
    table = Table(box=None, padding=(0, 1), show_header=True, header_style="dim")
    table.add_column("", width=12)
    for name, width in (("measured", 9), ("predicted", 9), ("deviation", 17), ("worst", 9)):
        table.add_column(name, justify="right", width=width, no_wrap=True)
    table.add_column("verdict", width=12, no_wrap=True)
    for row in claim.to_dict("records"):
        cells = (
            row["scope"],
            number(row["measured"]),
            number(row["predicted"]),
            interval(row["low"], row["high"], row["deviation"]),
            percent(row["worst"]),
        )
        table.add_row(
            *(Text(encodable(console, cell)) for cell in cells),
            Text(row["verdict"], style=COLOURS[row["verdict"]]),
        )
    if reasons := _reasons(claim):
        table.caption, table.caption_justify = encodable(console, reasons), "left"
    return table


def _reasons(claim: pd.DataFrame) -> str:
    notes = claim[claim["note"] != ""].groupby("note", sort=False)["scope"].agg(", ".join)
    return "; ".join(f"{scopes}: {note}" for note, scopes in notes.items())


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(encodable(console, text), style=style))


def _is_ascii(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")


def encodable(console: Console, text: str) -> str:
    """Plain ASCII stand-ins where the terminal's encoding has no other (LANG=C in a batch job's log)."""
    if not _is_ascii(console):
        return text
    for symbol, plain in (("±", "+-"), (MINUS, "-"), (DASH, "-"), ("→", "->"), ("κ", "kappa"), ("λ", "lam")):
        text = text.replace(symbol, plain)
    return text
