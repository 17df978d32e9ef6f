"""What does the framework itself cost per cell? Everything but imports, training and measuring.

    python benchmarks/cluster_overhead.py [--cells 20]

Counted: composing the configuration, drawing the splits, making and ending the logger, Lightning's own start and end,
hashing, and every file of a cell's folder, each flushed to disk. Not counted: the steps of training, the start and end
of its optimiser, and the networks themselves. Modes take turns, cell by cell, so that a busy machine is fair to each.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from ridgescope.train import cell as cell_module
from ridgescope.train.config import register
from ridgescope.train.main import run_cell
from ridgescope.train.progress import quiet
from ridgescope.train.sweep import compose_cells
from ridgescope.train.training import EnsembleTraining

SIZE = "data=digits data.train_size=10 data.pool_size=60 data.test_size=20 ridges=[1e-1] num_seeds=1 num_draws=2"

training = {"wall": 0.0, "cpu": 0.0}


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the time of a call to ``training``."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            training["wall"] += time.perf_counter() - wall
            training["cpu"] += time.process_time() - cpu

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=20, help="cells of each mode")
    given = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    register()
    for name in ("configure_optimizers", "on_fit_start", "training_step", "on_train_end"):
        setattr(EnsembleTraining, name, counted(getattr(EnsembleTraining, name)))
    cell_module.initialise = counted(cell_module.initialise)  # type: ignore[attr-defined]
    modes = {"without wandb": "logging.wandb=disabled", "wandb offline": "logging.wandb=offline"}
    spent: dict[str, list[tuple[float, float]]] = {mode: [] for mode in modes}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.cells + 2):
            for mode, words in modes.items():
                training.update(wall=0.0, cpu=0.0)
                wall, cpu = time.perf_counter(), time.process_time()
                (cell,) = compose_cells([*SIZE.split(), f"seed={seed}", f"output={folder}/{mode.split()[0]}", words])
                run_cell(cell)
                seconds = time.perf_counter() - wall - training["wall"], time.process_time() - cpu - training["cpu"]
                if seed >= 2:  # the first ones load and compile
                    spent[mode].append(seconds)
    for mode, pairs in spent.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{mode:14} {wall:.3f} s per cell, of which CPU {cpu:.3f} s (median of {given.cells})")


if __name__ == "__main__":
    main()
