"""Trained lazy networks against the finite-width law, from experiments that were trained and analysed.

    ridgescope train -m model=mlp model.depth=1 model.width=16,64,256 data=digits data.target=parity \
        data.train_size=100,300 ridges=[1e-2,1e-4] num_seeds=12 num_draws=12 alpha=100 name=lazy_digits
    ridgescope analyse folder=runs/lazy_digits
    python benchmarks/finite_width_trained.py runs/lazy_digits [more folders]

Prints a Markdown table; "-" where the law has no average over training sets (depth, convolutions). Every seed has its
own training set, so network and law are compared pair by pair: the deviation is that of the law's mean from the
networks', its error the spread of the difference over pairs.
"""

import argparse
from pathlib import Path

import pandas as pd

COLUMNS = "| data | P | N | lam | network | law | law/network | law, any training set | kernel/network | excess |"


def line(rows: pd.DataFrame) -> str:
    first, network = rows.iloc[0], rows.network_test
    scale = network.mean()
    error = (rows.block_test - network).std() / len(rows) ** 0.5 / scale
    kernel = (rows.krr_test / network - 1).abs().max()
    excess = scale / rows.infinite_test.mean() - 1
    average = "-" if pd.isna(first.block_pool_test) else f"{100 * (first.block_pool_test / scale - 1):+.1f} %"
    return (
        f"| {first['data']} | {first.P} | {first.width} | {first.ridge:g} | {scale:.4f} | {rows.block_test.mean():.4f} "
        f"| {100 * (rows.block_test.mean() / scale - 1):+.1f} ± {100 * error:.1f} % "
        f"| {average} | {100 * kernel:.2f} % | {100 * excess:.0f} % |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    print(f"{COLUMNS}\n{'|---' * 10}|")
    for folder in options.folders:
        table = pd.read_parquet(folder / "report" / "networks.parquet")
        table = table[table.converged]
        for _, rows in table.groupby(["P", "width", "ridge"]):
            print(line(rows))


if __name__ == "__main__":
    main()
