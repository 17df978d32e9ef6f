"""The terms of the risk of trained lazy networks against theory, from crossed experiments that were analysed.

    ridgescope train -m model=mlp model.depth=1 model.width=32,64,128,256 data=digits data.target=parity \
        data.train_size=100 ridges=[1e-2,1e-3] design=crossed num_seeds=8 num_draws=8 alpha=100 name=variance_terms
    ridgescope analyse folder=runs/variance_terms
    python benchmarks/variance_terms.py runs/variance_terms [more folders]
    python benchmarks/variance_terms.py --at-training-sets runs/variance_terms [--widths 128 256]

Prints Markdown tables: every term of the trained networks beside the finite-width law and the theory with N_eff
independent features, and how many of them are within 15 % or two standard errors. ``--at-training-sets``: bias and
initialisation variance by the law at pairs of the networks' own training sets and test points, without a pool; one
hidden layer; minutes for each cell.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

from ridgescope.analysis.crossed import TERMS
from ridgescope.analysis.finite_width import block_kernel
from ridgescope.analysis.runs import Cell, finished_cells, load_cell
from ridgescope.theory.blocks import shared_network

COLUMNS = (
    "data | depth | P | lam | width | term | measured | s.e. | law | law: deviation | in s.e. | N_eff: deviation "
    "| in s.e. | kernel/network"
)
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
    """``measured/theory - 1``, and the same distance in standard errors of the measurement."""
    return pd.DataFrame(
        {"share": rows["measured"] / rows[theory] - 1, "z": (rows["measured"] - rows[theory]) / rows["se"]}
    )


def line(row: pd.Series, law: pd.Series, width: pd.Series) -> str:
    cells = [row["data"], f"{row['depth']:g}", f"{row['P']:g}", f"{row['ridge']:g}", f"{row['width']:g}", row["term"]]
    cells += [f"{row['measured']:.4f}", f"{row['se']:.4f}", f"{row['law']:.4f}"]
    for one in (law, width):
        cells += [f"{100 * one['share']:+.0f} %", f"{one['z']:+.1f}"]
    return "| " + " | ".join([*cells, f"{row['kernel'] / row['measured']:.3f}"]) + " |"


def summary(rows: pd.DataFrame) -> None:
    """How many terms are within the target, by theory."""
    print("\n| theory | term | cells | within 15 % | within 15 % or 2 s.e. | mean deviation | worst | worst in s.e. |")
    print("|" + "---|" * 8)
    for words, theory in (("finite-width law", "law"), ("N_eff", "predicted_width")):
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


def at_training_sets(cell: Cell, ridge: float) -> str:
    """Both means with their standard errors over pairs of neighbouring draws."""
    data, width = cell.data(), int(cell.config["model"]["width"])
    sets, network = data.splits.train, cell.network(data)
    found = []
    for first, second in zip(sets, sets.roll(-1, 0), strict=True):
        union, place = torch.unique(torch.cat([first, second]), return_inverse=True)
        kernel = block_kernel(network, data.pool_inputs[union], data.test_inputs)
        pair = shared_network(
            kernel, data.pool_targets[union], place.split(len(first)), width=width, ridge=ridge
        )  # fmt: skip
        missed = (pair.first - data.test_targets) * (pair.second - data.test_targets)
        found.append([float(missed.sum(1).mean()), float(pair.covariance.mean())])
    table = torch.tensor(found, dtype=torch.float64)
    mean, error = table.mean(0).tolist(), (table.std(0) / len(table) ** 0.5).tolist()
    return f"| {width} | {ridge:g} | {mean[0]:.4f} ± {error[0]:.4f} | {mean[1]:.5f} ± {error[1]:.5f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--at-training-sets", action="store_true")
    parser.add_argument("--widths", type=int, nargs="*", help="only these, with --at-training-sets")
    options = parser.parse_args()
    if options.at_training_sets:
        print("| width | ridge | bias: law at the sets | initialisation variance: law at the sets |\n|---|---|---|---|")
        for cell in (load_cell(path) for folder in options.folders for path in finished_cells(folder)[0]):
            if options.widths is None or int(cell.config["model"]["width"]) in options.widths:
                for ridge in cell.config["ridges"]:
                    print(at_training_sets(cell, float(ridge)), flush=True)
        return
    rows = pd.concat([terms(folder) for folder in options.folders], ignore_index=True)
    print(f"| {COLUMNS} |\n" + "|---" * len(COLUMNS.split(" | ")) + "|")
    law, width = deviation(rows, "law"), deviation(rows, "predicted_width")
    for i in rows.index:
        print(line(rows.loc[i], law.loc[i], width.loc[i]))
    summary(rows)


if __name__ == "__main__":
    main()
