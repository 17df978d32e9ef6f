"""The terms of the risk of trained lazy networks against theory, from crossed experiments that were analysed.

    ridgescope train -m model=mlp model.depth=1 model.width=32,64,128,256 data=digits data.target=parity \
        data.train_size=100 ridges=[1e-2,1e-3] design=crossed num_seeds=8 num_draws=8 alpha=100 name=variance_terms
    ridgescope analyse folder=runs/variance_terms
    python benchmarks/variance_terms.py runs/variance_terms [more folders]

Prints Markdown tables: every term of the trained networks beside the finite-width law, the same law at the networks'
own training sets (one hidden layer), and the theory with N_eff independent features; and how many terms are within 15 %
or two standard errors.
"""

import argparse
from pathlib import Path

import pandas as pd

from ridgescope.analysis.crossed import TERMS

COLUMNS = (
    "data | depth | P | lam | width | term | measured | s.e. | law | law: deviation | in s.e. | at the sets: deviation "
    "| in s.e. | N_eff: deviation | in s.e. | kernel/network"
)
THEORIES = {"finite-width law": "law", "law at the training sets": "predicted_sets", "N_eff": "predicted_width"}
WITHIN, ERRORS = 0.15, 2.0


def terms(folder: Path) -> pd.DataFrame:
    """One row per term of each cell and ridge: the networks', their kernels', and both theories' values."""
    table = pd.read_parquet(folder / "report" / "attribution.parquet")
    depth = pd.read_parquet(folder / "report" / "networks.parquet").groupby("run")["depth"].first()
    table = table[table["term"].isin(TERMS)].assign(depth=table["run"].map(depth))
    keys = ["run", "ridge", "term"]
    kernels = table[table["who"] == "kernel"].set_index(keys)["measured"]
    networks = table[table["who"] == "network"].set_index(keys)
    networks = networks.assign(kernel=kernels, order=networks.index.get_level_values("term").map(list(TERMS).index))
    networks["law"] = networks["predicted"].where(networks["theory"] == "finite-width law")
    return networks.reset_index().sort_values(["data", "depth", "P", "ridge", "width", "order"])


def deviation(rows: pd.DataFrame, theory: str) -> pd.DataFrame:
    """``measured/theory - 1``, and the same distance in standard errors of the measurement (at the training sets: of
    the seeds alone, for the law knows the draws)."""
    se = rows["se_sets" if theory == "predicted_sets" else "se"]
    return pd.DataFrame({"share": rows["measured"] / rows[theory] - 1, "z": (rows["measured"] - rows[theory]) / se})


def line(row: pd.Series, theories: list[pd.Series]) -> str:
    cells = [row["data"], f"{row['depth']:g}", f"{row['P']:g}", f"{row['ridge']:g}", f"{row['width']:g}", row["term"]]
    cells += [f"{row['measured']:.4f}", f"{row['se']:.4f}", f"{row['law']:.4f}"]
    for one in theories:
        cells += ["-", "-"] if pd.isna(one["share"]) else [f"{100 * one['share']:+.0f} %", f"{one['z']:+.1f}"]
    return "| " + " | ".join([*cells, f"{row['kernel'] / row['measured']:.3f}"]) + " |"


def summary(rows: pd.DataFrame) -> None:
    """How many terms are within the target, by theory."""
    print("\n| theory | term | cells | within 15 % | within 15 % or 2 s.e. | mean deviation | worst | worst in s.e. |")
    print("|" + "---|" * 8)
    for words, theory in THEORIES.items():
        known = rows[rows[theory].notna()]
        for term, part in known.groupby("term", sort=False):
            off = deviation(part, theory)
            near, close = off["share"].abs() < WITHIN, off["z"].abs() < ERRORS
            worst, largest = off["share"].abs().idxmax(), off["z"].abs().idxmax()
            print(
                f"| {words} | {term} | {len(part)} | {near.sum()} | {(near | close).sum()} "
                f"| {100 * off['share'].mean():+.1f} % | {100 * off['share'][worst]:+.0f} % "
                f"| {off['z'][largest]:+.1f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    rows = pd.concat([terms(folder) for folder in options.folders], ignore_index=True)
    print(f"| {COLUMNS} |\n" + "|---" * len(COLUMNS.split(" | ")) + "|")
    theories = [deviation(rows, name) for name in THEORIES.values()]
    for i in rows.index:
        print(line(rows.loc[i], [one.loc[i] for one in theories]))
    summary(rows)


if __name__ == "__main__":
    main()
