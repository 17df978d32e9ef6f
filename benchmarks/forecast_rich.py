"""How far a forecast from the kernel after training misses networks that learn features. Digits, parity, one output.

    python benchmarks/forecast_rich.py [--alpha 0.1 10]

MLPs of width 64 (two hidden ReLU layers) are trained on 200 points; their tangent kernels before and after training, on
400 other points, forecast networks trained on 600 others, tested on the rest.
"""

import argparse
import math
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ridgescope.analysis.forecast import forecast
from ridgescope.models import MLP, empirical_ntk
from ridgescope.train.cell import train_cell
from ridgescope.train.data import PreparedData, Splits, prepare_data
from ridgescope.train.files import read_json, read_tensors
from ridgescope.train.optimisers import KernelLBFGS
from ridgescope.train.progress import quiet

LARGE, SMALL, POOL = slice(0, 600), slice(600, 800), slice(800, 1200)
RIDGE = 1e-3
SEEDS = 3


def load() -> PreparedData:
    data = prepare_data(
        "digits", train_size=1, pool_size=1200, test_size=597, num_draws=1, target="parity", seed=0, dtype=torch.float64
    )
    return data


def trained(folder: Path, data: PreparedData, where: slice, alpha: float) -> list[tuple[dict[str, Tensor], float, str]]:
    """Final weights, test risk and status of each seed, trained on the points ``where``."""
    rows = torch.arange(where.start, where.stop).expand(SEEDS, -1)
    mine = replace(data, splits=Splits(data.splits.pool, data.splits.test, rows))
    network = partial(MLP, width=64, depth=2, activation="relu")
    train_cell(
        folder,
        config={"data": {"name": "digits", "seed": 0}, "model": {}},
        data=mine,
        factory=network,
        optimiser=KernelLBFGS(),
        ridges=[RIDGE],
        num_seeds=SEEDS,
        design="paired",
        seed=0,
        alpha=alpha,
        batch_size=None,
        max_steps=500,
        tolerance=1e-5,
        dtype=torch.float64,
        accelerator="cpu",
        memory=int(2e9),
        checkpoint_every=1e9,
    )
    initial, found = read_tensors(folder / "initial.safetensors"), []
    model = network((1, 8, 8), 1, generator=torch.Generator().manual_seed(0))
    for program in range(read_json(folder / "done.json")["programs"]):
        final = read_tensors(folder / f"program-{program:03d}.safetensors")
        for i, member in enumerate(read_json(folder / f"program-{program:03d}.json")):
            weights = {name: value[i] for name, value in final.items()}
            start = {name: value[member["seed"]] for name, value in initial.items()}
            with torch.no_grad():
                f, f0 = (torch.func.functional_call(model, w, (data.test_inputs,)) for w in (weights, start))
            risk = float((alpha * (f - f0) - data.test_targets).square().mean())
            found.append((weights, risk, member["status"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpha", nargs="+", type=float, default=[0.1, 10.0])
    options = parser.parse_args()
    quiet()
    data = load()
    model = MLP((1, 8, 8), 1, width=64, depth=2, activation="relu", generator=torch.Generator().manual_seed(0))
    x, y = data.pool_inputs[POOL], data.pool_targets[POOL]
    print(
        "| alpha | networks at P = 200 | at P = 600 | kernel before: forecast at 600 | kernel after: forecast at 600 |"
    )
    print("| --- | --- | --- | --- | --- |")
    for alpha in options.alpha:
        with tempfile.TemporaryDirectory() as folder:
            small = trained(Path(folder) / "small", data, SMALL, alpha)
            large = trained(Path(folder) / "large", data, LARGE, alpha)
            initial = read_tensors(Path(folder) / "small" / "initial.safetensors")
        said = []
        for kernels in (
            [empirical_ntk(model, {k: v[i] for k, v in initial.items()}, x) for i in range(SEEDS)],
            [empirical_ntk(model, weights, x) for weights, _, _ in small],
        ):
            row = forecast({math.inf: kernels}, y, num_samples=[600], ridges=[RIDGE]).table.iloc[0]
            said.append(f"{row['risk']:.4f} ({row['risk_low']:.4f} to {row['risk_high']:.4f})")
        means = [sum(risk for _, risk, _ in some) / SEEDS for some in (small, large)]
        print(f"| {alpha:g} | {means[0]:.4f} | {means[1]:.4f} | {said[0]} | {said[1]} |", flush=True)


if __name__ == "__main__":
    main()
