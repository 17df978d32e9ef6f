"""Trained lazy networks against kernel ridge regression with their own tangent kernel at the start.

    OMP_NUM_THREADS=1 python benchmarks/lazy_optimum.py run lazy_optimum.csv [--data digits] [--sizes 100]
    python benchmarks/lazy_optimum.py report lazy_optimum.csv > docs/results/lazy_optimum.md

Each member is trained by the engine to its certificate; the regression solves (K + P lam) dual = y with the member's
own full kernel, P C rows. What is compared is the risk on the test points: | network / regression - 1 |. One
output (parity of the label) at every P; ten outputs (one-hot) at P = 100 only, since at P = 1000 their kernel has 10^4
rows for each member.
"""

import argparse
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ridgescope.models import MLP, empirical_ntk, linearised_predict
from ridgescope.train.cell import train_cell
from ridgescope.train.data import PreparedData, prepare_data
from ridgescope.train.ensemble import FlatNetwork, initialise
from ridgescope.train.files import read_json
from ridgescope.train.optimisers import KernelLBFGS
from ridgescope.train.progress import quiet

RIDGES = (1e-2, 1e-3, 1e-4)
POOLS = {"digits": (1300, 497), "fashion_mnist": (4000, 1000)}
ROOTS = {"fashion_mnist": "/usr/share/datasets/fashion-mnist"}  # Debian's dataset-fashion-mnist
TEN_OUTPUTS = 100  # up to this P


def regression_risks(network: FlatNetwork, theta: Tensor, data: PreparedData, draw: int) -> dict[float, float]:
    """Test risk of kernel ridge regression with the kernel at ``theta`` (p,), per ridge."""
    parameters = {name: value[0] for name, value in network.unflatten(theta[None]).items()}
    index = data.splits.train[draw]
    x, y = data.pool_inputs[index], data.pool_targets[index].T.flatten()
    gram = empirical_ntk(network.skeleton, parameters, x) / network.kernel_scale
    risks = {}
    for ridge in RIDGES:
        system = gram.clone()
        system.diagonal().add_(len(x) * ridge)
        dual = torch.cholesky_solve(y[:, None], torch.linalg.cholesky(system))[:, 0] / network.kernel_scale
        predicted = linearised_predict(network.skeleton, parameters, x, dual, data.test_inputs)
        risks[ridge] = float((predicted - data.test_targets).square().sum(1).mean())
    return risks


def cell(name: str, target: Any, size: int, width: int, alpha: float, replicates: int) -> list[dict[str, object]]:
    pool, tests = POOLS[name]
    data = prepare_data(
        name, root=ROOTS.get(name), download=False, train_size=size, pool_size=pool, test_size=tests,
        num_draws=replicates, target=target,
    )  # fmt: skip
    factory = partial(MLP, width=width, depth=2, activation="gelu")
    with tempfile.TemporaryDirectory() as folder:
        train_cell(
            Path(folder),
            config={"data": {"seed": 0}},
            data=data,
            factory=factory,
            optimiser=KernelLBFGS(),
            ridges=RIDGES,
            num_seeds=replicates,
            design="paired",
            seed=0,
            alpha=alpha,
            batch_size=None,
            max_steps=500,
            tolerance=1e-6,
            dtype=torch.float64,
            accelerator="cpu",
            memory=3 * 10**8,
        )
        records = [m for path in sorted(Path(folder).glob("program-*.json")) for m in read_json(path)]
    network, initial = initialise(
        factory,
        in_shape=data.in_shape,
        num_outputs=data.num_outputs,
        seeds=list(range(replicates)),
        dtype=torch.float64,
    )
    regressions = [regression_risks(network, initial[i], data, i) for i in range(replicates)]
    identity = {"data": name, "outputs": data.num_outputs, "P": size, "N": width, "alpha": alpha}
    return [
        {**identity, "lam": m["ridge"], "seed": m["seed"], "status": m["status"], "steps": m["steps"]}
        | {"deviation": abs(m["test_risk"] / regressions[m["seed"]][m["ridge"]] - 1)}
        for m in records
    ]


def report(table: pd.DataFrame) -> None:
    """The summary as Markdown; deviations in percent."""
    percent = 100 * table["deviation"]
    print(__doc__)
    print(
        f"MLPs d-N-N-C with GELU, N = {', '.join(map(str, sorted(table['N'].unique())))}; alpha = "
        f"{table['alpha'].iloc[0]:g}; {len(table)} networks, {table['status'].value_counts().to_dict()}, at most "
        f"{table['steps'].max()} evaluations; torch {torch.__version__}.\n"
    )
    print(f"Deviation of the test risk: **median {percent.median():.2g} %, worst {percent.max():.2g} %**.\n")
    print("| data | outputs | P | lam | networks | median, % | worst, % |")
    print("|---|---|---|---|---|---|---|")
    for (name, outputs, size, lam), rows in table.groupby(["data", "outputs", "P", "lam"]):
        part = 100 * rows["deviation"]
        print(f"| {name} | {outputs} | {size} | {lam:g} | {len(rows)} | {part.median():.2g} | {part.max():.2g} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["run", "report"])
    parser.add_argument("table", type=Path)
    parser.add_argument("--data", nargs="+", default=list(POOLS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 400, 1000])
    parser.add_argument("--widths", nargs="+", type=int, default=[128, 256, 512])
    parser.add_argument("--alpha", type=float, default=100.0)
    parser.add_argument("--replicates", type=int, default=2)
    options = parser.parse_args()
    if options.part == "report":
        report(pd.read_csv(options.table))
        return
    quiet()
    for name, size, width in product(options.data, options.sizes, options.widths):
        for target in ("parity", "one_hot") if size <= TEN_OUTPUTS else ("parity",):
            rows = pd.DataFrame(cell(name, target, size, width, options.alpha, options.replicates))
            rows.to_csv(options.table, mode="a", header=not options.table.exists(), index=False)
            print(f"{name} {target} P={size} N={width}: worst {100 * rows['deviation'].max():.2g} %", flush=True)


if __name__ == "__main__":
    main()
