"""32 networks as one program, against a loop of Lightning runs and a bare PyTorch loop: time of a step of all of them.

    OMP_NUM_THREADS=1 python benchmarks/ensembles.py run ensembles.csv [--data digits] [--widths 64] [--rounds 5]
    python benchmarks/ensembles.py report ensembles.csv > docs/results/ensembles.md

MLPs d-N-N-10 with ReLU, 32 seeds, P = 1000, float32, SGD with momentum 0.9 on the squared error. The three run in turn
in every round. What counts is the time from the first step to the last: setting up a Trainer, which the Lightning loop
does 32 times, is left out. The engine's time holds its share of the full gradients that judge minibatch training. The
clock is processor time, so that a shared machine does not enter; with more than one thread it is wall time.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ridgescope.models import MLP
from ridgescope.train.callbacks import MetricsFile, PlainProgress
from ridgescope.train.data import PreparedData, RidgeData, prepare_data
from ridgescope.train.ensemble import Member, initialise
from ridgescope.train.optimisers import SGD
from ridgescope.train.programs import fit
from ridgescope.train.progress import quiet
from ridgescope.train.training import _JUDGED_EPOCHS, EnsembleTraining

SEEDS, SAMPLES, RATE, MOMENTUM = 32, 1000, 1e-3, 0.9
POOLS = {"digits": (1300, 100), "fashion_mnist": (4000, 100)}
ROOTS = {"fashion_mnist": "/usr/share/datasets/fashion-mnist"}
STEPS = {(64, 128): 35, (256, 128): 14, (1024, 128): 3, (64, None): 10, (256, None): 4, (1024, None): 1}


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class Stopwatch(L.Callback):
    """Stops after ``steps`` steps and knows how long they took."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.seconds = steps, 0, 0.0

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if self.done == 0:
            self.start = clock()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.done += 1
        if self.done == self.steps:
            self.seconds, trainer.should_stop = clock() - self.start, True


class FixedSGD(SGD):
    """Gradient descent at the given rate, without the look at the stability edge: minutes before the first step."""

    def build(self, training: EnsembleTraining) -> torch.optim.Optimizer:
        return torch.optim.SGD([training.theta], lr=RATE, momentum=self.momentum, fused=True)


def ensemble(data: PreparedData, width: int, batch: int | None, steps: int) -> float:
    network, initial = initialise(
        partial(MLP, width=width, depth=2, activation="relu"),
        in_shape=data.in_shape,
        num_outputs=data.num_outputs,
        seeds=list(range(SEEDS)),
        dtype=torch.float32,
    )
    module = RidgeData(data, batch_size=batch)
    training = EnsembleTraining(
        network,
        initial,
        [Member(seed, 0, 0.0) for seed in range(SEEDS)],
        inputs=module.inputs,
        targets=module.targets,
        alpha=1.0,
        optimiser=FixedSGD(RATE, MOMENTUM),
        batch_size=batch,
        max_steps=10**9,
        stop="steps",
    )
    watch = Stopwatch(steps)
    with tempfile.TemporaryDirectory() as folder:
        fit(training, module, callbacks=[MetricsFile(Path(folder) / "metrics.csv", 0), PlainProgress(), watch])
    if batch is None:
        return watch.seconds / steps
    begun = clock()
    training._evaluate(torch.arange(SAMPLES), count=False)
    return watch.seconds / steps + (clock() - begun) / (_JUDGED_EPOCHS * (SAMPLES // batch))


def plain_network(data: PreparedData, width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    sizes = [data.pool_inputs[0].numel(), width, width, data.num_outputs]
    layers = [nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


class PlainTraining(L.LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, y = batch
        return (self.network(x) - y).square().sum(1).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=RATE, momentum=MOMENTUM)


def lightning_loop(data: PreparedData, width: int, batch: int | None, steps: int) -> float:
    x, y = training_set(data)
    total = 0.0
    for seed in range(SEEDS):
        loader = DataLoader(TensorDataset(x, y), batch_size=batch or SAMPLES, shuffle=batch is not None, drop_last=True)
        watch = Stopwatch(steps)
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            callbacks=[watch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(PlainTraining(plain_network(data, width, seed)), loader)
        total += watch.seconds
    return total / steps


def bare_loop(data: PreparedData, width: int, batch: int | None, steps: int) -> float:
    x, y = training_set(data)
    total = 0.0
    for seed in range(SEEDS):
        network = plain_network(data, width, seed)
        optimiser = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM)
        begun, done = clock(), 0
        while done < steps:
            parts = [None] if batch is None else torch.randperm(SAMPLES).split(batch)[: SAMPLES // batch]
            for part in parts[: steps - done]:
                inputs, targets = (x, y) if part is None else (x[part], y[part])
                optimiser.zero_grad()
                (network(inputs) - targets).square().sum(1).mean().backward()
                optimiser.step()
                done += 1
        total += clock() - begun
    return total / steps


def training_set(data: PreparedData) -> tuple[Tensor, Tensor]:
    index = data.splits.train[0]
    return data.pool_inputs[index].flatten(1), data.pool_targets[index]


def gemm_peak(size: int = 2048) -> float:
    """Multiplications and additions per second of a large float32 matrix product."""
    a = torch.randn(size, size)
    times = []
    for _ in range(4):
        begun = clock()
        a @ a
        times.append(clock() - begun)
    return 2 * size**3 / min(times)


def step_flops(data: PreparedData, width: int, batch: int | None) -> float:
    d, outputs = data.pool_inputs[0].numel(), data.num_outputs
    return 2 * SEEDS * (batch or SAMPLES) * (2 * d * width + 3 * width**2 + 3 * width * outputs)


METHODS: dict[str, Callable[[PreparedData, int, int | None, int], float]] = {
    "ensemble": ensemble,
    "lightning": lightning_loop,
    "bare": bare_loop,
}


def run(path: Path, names: list[str], widths: list[int], rounds: int) -> None:
    quiet()
    for name in names:
        pool, tests = POOLS[name]
        data = prepare_data(
            name, root=ROOTS.get(name), download=False, train_size=SAMPLES, pool_size=pool, test_size=tests,
            num_draws=1, dtype=torch.float32,
        )  # fmt: skip
        for width in widths:
            for batch in (128, None):
                ensemble(data, width, batch, 1)  # the first call of everything
                for repeat in range(rounds):
                    row: dict[str, object] = {"data": name, "width": width, "batch": batch or SAMPLES, "round": repeat}
                    row |= {"threads": torch.get_num_threads(), "peak": gemm_peak(), "load": os.getloadavg()[0]}
                    row |= {key: method(data, width, batch, STEPS[width, batch]) for key, method in METHODS.items()}
                    row["flops"] = step_flops(data, width, batch)
                    pd.DataFrame([row]).to_csv(path, mode="a", header=not path.exists(), index=False)
                    print(row, flush=True)


def report(path: Path) -> None:
    table = pd.read_csv(path)
    print(__doc__)
    print(f"torch {torch.__version__}, Lightning {L.__version__}; median (least, most) over rounds.\n")
    print("| data | N | batch | threads | one program, ms | over Lightning | over bare loop | share of GEMM peak |")
    print("|---|---|---|---|---|---|---|---|")
    for (name, width, batch, threads), rows in table.groupby(["data", "width", "batch", "threads"]):
        ratios = [_spread(rows[key] / rows["ensemble"]) for key in ("lightning", "bare")]
        share = statistics.median(rows["flops"] / rows["ensemble"] / rows["peak"])
        millis = 1e3 * rows["ensemble"].median()
        print(f"| {name} | {width} | {batch} | {threads} | {millis:.1f} | {' | '.join(ratios)} | {share:.0%} |")
    peak = table["peak"].median() / 1e9
    print(f"\nGEMM peak {peak:.0f} GFLOP/s (median), load {table['load'].min():.1f} to {table['load'].max():.1f}.")


def _spread(ratios: pd.Series) -> str:
    return f"{ratios.median():.1f} ({ratios.min():.1f}, {ratios.max():.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["run", "report"])
    parser.add_argument("table", type=Path)
    parser.add_argument("--data", nargs="+", default=list(POOLS))
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.part == "run":
        run(options.table, options.data, options.widths, options.rounds)
    else:
        report(options.table)


if __name__ == "__main__":
    main()
