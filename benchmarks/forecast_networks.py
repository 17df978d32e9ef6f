"""Trained lazy networks of P = 4000 samples, and the pilots' tangent kernels of networks of the same widths.

    python benchmarks/forecast_networks.py --folder runs/forecast [--widths 32 64 128 256]

MLPs of two hidden ReLU layers, alpha = 10, trained to the certified optimum on the parity of the class (one output).
The pilots' kernels belong to other draws of the weights. Appends to networks.parquet; cells are kept and not repeated.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from forecast_runs import DESIGNS, load, refined_solve, targets

from ridgescope.models import MLP, empirical_ntk
from ridgescope.train.cell import is_done, train_cell
from ridgescope.train.data import PreparedData, Splits
from ridgescope.train.files import read_json, read_tensors, write_atomically, write_tensors
from ridgescope.train.optimisers import KernelLBFGS

RIDGES = (1e-2, 1e-3, 1e-4)  # in units of the kernel divided by 3, as in forecast_runs
WIDTHS = (32, 64, 128, 256)
SIZE = 4000
SEEDS = 2  # trained networks
DRAWS = 4  # of the weights, whose kernels the pilots have
PILOTS = 3
SCALE = 3.0  # K(x, x) of the kernel


def network(width: int, seed: int) -> MLP:
    generator = torch.Generator().manual_seed(seed)
    return MLP((1, 28, 28), 1, width=width, depth=2, activation="relu", generator=generator)


def pilot_kernel(folder: Path, data: PreparedData, width: int, pilot: int, seed: int) -> torch.Tensor:
    path = folder / "fashion_mnist" / f"width{width}_pilot_{pilot}_{seed}.safetensors"
    if not path.is_file():
        design = DESIGNS["fashion_mnist"]
        x = data.pool_inputs[design.pilot(pilot)]
        write_tensors(path, {"kernel": empirical_ntk(network(width, 1000 + seed), None, x) / SCALE})
    return read_tensors(path)["kernel"]


def train(folder: Path, data: PreparedData, width: int, ridge: float) -> list[dict[str, object]]:
    """Two networks, seed i on the i-th `SIZE` of the runs' points."""
    y, y_test = targets(data.pool_labels, "parity"), targets(data.test_labels, "parity")
    draws = torch.arange(SEEDS * SIZE).view(SEEDS, SIZE)
    mine = replace(data, pool_targets=y, test_targets=y_test, splits=Splits(data.splits.pool, data.splits.test, draws))
    cell = folder / "cells" / f"width{width}-ridge{ridge:.0e}"
    if not is_done(cell):
        train_cell(
            cell,
            config={"data": {"name": "fashion_mnist", "seed": 0}, "model": {"width": width}, "ridge": ridge},
            data=mine,
            factory=partial(MLP, width=width, depth=2, activation="relu"),
            optimiser=KernelLBFGS(),
            dtype=torch.float64,
            memory=int(2e9),
            checkpoint_every=1e9,
            ridges=[SCALE * ridge],
            num_seeds=SEEDS,
            design="paired",
            seed=0,
            alpha=10.0,
            batch_size=None,
            max_steps=200,
            tolerance=1e-4,
            accelerator="cpu",
        )
    initial = read_tensors(cell / "initial.safetensors")
    rows: list[dict[str, object]] = []
    for program in range(read_json(cell / "done.json")["programs"]):
        members = read_json(cell / f"program-{program:03d}.json")
        final = read_tensors(cell / f"program-{program:03d}.safetensors")
        for i, member in enumerate(members):
            model = network(width, 0)

            def outputs(weights: dict[str, torch.Tensor], model: MLP = model) -> torch.Tensor:
                with torch.no_grad():
                    return torch.func.functional_call(model, weights, (data.test_inputs,))

            f = 10.0 * (
                outputs({k: v[i] for k, v in final.items()})
                - outputs({k: v[member["seed"]] for k, v in initial.items()})
            )
            errors = (f - y_test).square().sum(1)
            row: dict[str, object] = {"data": "fashion_mnist", "family": f"width {width}", "target": "parity"}
            row |= {"P": SIZE, "draw": member["draw"], "ridge": ridge, "width": width}
            row |= {"test": float(errors.mean()), "test_se": float(errors.std() / len(errors) ** 0.5)}
            accuracy = float((f * y_test > 0).double().mean())
            rows.append(row | {"accuracy": accuracy, "tests": len(errors), "status": member["status"]})
    return rows


def own(folder: Path, data: PreparedData, width: int) -> pd.DataFrame:
    """Regression on the points of each trained network: with its own kernel at the start ("own"), and with the kernels
    of the other draws that the pilots have ("others"). What parts the network from "own" is that it is trained;
    what parts "own" from "others" is the draw of the weights.
    """
    y, y_test = targets(data.pool_labels, "parity"), targets(data.test_labels, "parity")
    initial = read_tensors(folder / "cells" / f"width{width}-ridge{RIDGES[0]:.0e}" / "initial.safetensors")
    rows: list[dict[str, object]] = []
    for seed in range(SEEDS):
        points = slice(seed * SIZE, (seed + 1) * SIZE)
        kernels: list[tuple[str, MLP, dict[str, torch.Tensor] | None]] = [
            ("own", network(width, 0), {k: v[seed] for k, v in initial.items()}),
            *(("others", network(width, 1000 + i), None) for i in range(DRAWS)),
        ]
        for name, model, weights in kernels:
            x = data.pool_inputs[points]
            gram = empirical_ntk(model, weights, x) / SCALE
            cross = empirical_ntk(model, weights, data.test_inputs, x) / SCALE
            for ridge in RIDGES:
                errors = (cross @ refined_solve(gram, y[points], SIZE * ridge) - y_test).square().sum(1)
                row: dict[str, object] = {"width": width, "draw": seed, "ridge": ridge, "kernel": name}
                rows.append(row | {"test": float(errors.mean())})
    return pd.DataFrame(rows).groupby(["width", "draw", "ridge", "kernel"], as_index=False)["test"].mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/forecast"))
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS))
    options = parser.parse_args()
    data = load("fashion_mnist")
    for width in options.widths:
        for pilot in range(PILOTS):
            for seed in range(DRAWS):
                pilot_kernel(options.folder, data, width, pilot, seed)
    for ridge in RIDGES:
        for width in options.widths:
            rows = train(options.folder, data, width, ridge)
            path = options.folder / "networks.parquet"
            table = pd.read_parquet(path) if path.is_file() else pd.DataFrame()
            table = pd.concat([table, pd.DataFrame(rows)]).drop_duplicates(["family", "draw", "ridge"], keep="last")
            write_atomically(path, lambda place, table=table: table.to_parquet(place))
            print(pd.DataFrame(rows)[["family", "ridge", "draw", "test", "test_se", "status"]], flush=True)
    for width in options.widths:
        path = options.folder / "own" / f"width{width}.parquet"
        if not path.is_file():
            write_atomically(path, own(options.folder, data, width).to_parquet)
        print(pd.read_parquet(path).pivot_table(index=["ridge", "draw"], columns="kernel", values="test"), flush=True)


if __name__ == "__main__":
    main()
