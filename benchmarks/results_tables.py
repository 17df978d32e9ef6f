"""The tables of an experiment's report as Markdown: early stopping, the regime map, and claims along training.

ridgescope validate experiment=early_stopping && python benchmarks/results_tables.py runs/early_stopping
ridgescope validate experiment=regime_map && python benchmarks/results_tables.py runs/regime_map
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ridgescope.analysis.cells import setting_labels
from ridgescope.analysis.regimes import maps
from ridgescope.analysis.report.regimes import MAP_HEADINGS, regime_lines, regime_summary, scaling_lines
from ridgescope.analysis.report.stopping import BEST_HEADINGS, TIME_HEADINGS, stopping_lines
from ridgescope.analysis.report.text import interval, percent, rms_range

SCALING_HEADINGS = {
    "size": ("test risk against P: exponent of", "width", "λ", "measured", "theory"),
    "width": ("finite-width excess against N: β of", "P", "λ", "measured", "finite-width law"),
    "onset": ("onset of", "what", "λ", "measured"),
    "descent": ("double descent of", "along", "at", "λ", "peak", "where", "height"),
}


def main() -> None:
    report = Path(sys.argv[1]) / "report"
    networks, verdicts = (pd.read_parquet(report / f"{name}.parquet") for name in ("networks", "verdicts"))
    if (report / "stopping.parquet").exists():
        stopping(pd.read_parquet(report / "stopping.parquet"), networks, verdicts)
        return
    for name, rows in maps(pd.read_parquet(report / "regimes.parquet")).items():
        print(f"{name}: {regime_summary(rows)}\n")
        table(MAP_HEADINGS, [line["values"] for line in regime_lines(rows)])
    scaling = pd.read_parquet(report / "scaling.parquet")
    for model in dict.fromkeys(scaling["model"]):
        print(f"### {model}\n")
        for kind, lines in scaling_lines(scaling, str(model)).items():
            table(SCALING_HEADINGS[kind], lines)


def stopping(rows: pd.DataFrame, networks: pd.DataFrame, verdicts: pd.DataFrame) -> None:
    labels = dict(zip(networks["run"], setting_labels(networks), strict=True))
    of_rows = rows["run"].map(labels)
    judged = verdicts[verdicts["claim"].isin(["flow", "flow_theory", "stop_ridge"])]
    lines = [
        [
            *(row[name] for name in ("model", "label", "scope", "verdict")),
            interval(row["low"], row["high"], row["deviation"]),
            rms_range(row["rms"], row["rms_low"], row["rms_high"]),
            percent(row["worst"]),
        ]
        for row in judged.to_dict("records")
    ]
    table(("networks", "measured / predicted", "scope", "verdict", "deviation", "rms", "worst"), lines)
    found = {str(model): stopping_lines(rows[of_rows == model]) for model in dict.fromkeys(of_rows)}
    table(("networks", *BEST_HEADINGS), [[model, *line] for model, one in found.items() if one for line in one["best"]])
    for model, one in found.items():
        for cell in one["cells"][-1:] if one else []:
            print(f"{model}, {cell['title']}:\n")
            table(TIME_HEADINGS, cell["lines"])


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    print(f"| {' | '.join(headings)} |\n" + "|---" * len(headings) + "|")
    print("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")


if __name__ == "__main__":
    main()
