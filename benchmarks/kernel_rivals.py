"""Are our kernels faster than neural-tangents and torch.func? Same weights, same inputs, interleaved rounds.

    python -m venv rival && rival/bin/pip install jax==0.4.38 jaxlib==0.4.38 neural-tangents==0.6.5 tf2jax==0.3.6
    python benchmarks/kernel_rivals.py --rival rival/bin/python

Each runs in a process of its own: ours in this one, torch.func in a new one for each kernel. In a process that has made
one of our kernels, or freed larger arrays, torch.func reuses the memory that it frees, and is not what its users have.
The time of neural-tangents is that of its best implementation and batch size, chosen from one warm call each;
compilation is left out, and so is the first of two calls in each round. Printed: medians of the wall clock and of
processor seconds, their ratios, the share of the measured matrix-product peak, and the largest relative difference of
the kernels. On a busy machine the processor seconds say more.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from kernel_entk import multiply_adds, torch_func_ntk
from torch import Tensor

from ridgescope.models import CNN, MLP, empirical_ntk, infinite_ntk

Result = TypeVar("Result")


@dataclass(frozen=True)
class Config:
    """One kernel. ``shape`` of an input, ``n`` inputs; ``func``: whether torch.func fits too."""

    kind: str
    shape: tuple[int, ...]
    width: int
    outputs: int
    n: int
    form: str = "full"
    readout: str = "flatten"
    activation: str = "erf"
    infinite: bool = False
    func: bool = True

    @property
    def name(self) -> str:
        what = "infinite" if self.infinite else f"w{self.width} C{self.outputs} {self.form}"
        size = "x".join(map(str, self.shape))
        readout = "" if self.kind == "mlp" else f" {self.readout}"
        return f"{self.kind} {size}{readout} {what} {self.activation} n={self.n}"

    def network(self, dtype: torch.dtype) -> MLP | CNN:
        options: dict[str, Any] = {"readout": self.readout} if self.kind == "cnn" else {}
        generator = torch.Generator().manual_seed(0)
        return {"mlp": MLP, "cnn": CNN}[self.kind](
            self.shape, self.outputs, width=self.width, depth=3, activation=self.activation, generator=generator,
            dtype=dtype, **options,
        )  # fmt: skip

    def inputs(self, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.n, *self.shape, generator=generator, dtype=torch.float64).to(dtype)


PAUSE = 0.2  # seconds

GRAY, COLOUR = (1, 28, 28), (3, 32, 32)
EMPIRICAL = [
    *(Config("mlp", (784,), w, 1, n, func=w < 2048) for w, n in ((128, 500), (512, 500), (2048, 500))),
    *(Config("mlp", (784,), w, 10, n, func=False) for w, n in ((128, 300), (512, 200), (2048, 100))),
    Config("mlp", (784,), 512, 10, 500, form="trace", func=False),
    *(
        Config("cnn", shape, w, c, n, readout=readout)
        for readout in ("pool", "flatten")
        for shape in (GRAY, COLOUR)
        for c, sizes in ((1, (60, 40, 20)), (10, (30, 16, 8)))
        for w, n in zip((16, 64, 128), sizes, strict=True)
    ),
]
INFINITE = [
    Config("mlp", (784,), 8, 1, 1000, activation="relu", infinite=True),
    Config("mlp", (784,), 8, 1, 1000, infinite=True),
    Config("cnn", GRAY, 8, 1, 100, activation="relu", infinite=True),
    Config("cnn", GRAY, 8, 1, 100, infinite=True),
    Config("cnn", (3, 8, 8), 8, 1, 64, readout="pool", activation="relu", infinite=True),
    Config("cnn", (1, 14, 14), 8, 1, 24, readout="pool", activation="relu", infinite=True),
    Config("cnn", (3, 8, 8), 8, 1, 64, readout="pool", infinite=True),
    Config("cnn", GRAY, 8, 1, 8, readout="pool", activation="relu", infinite=True),
]


class Rival:
    """neural-tangents in its own process and precision."""

    def __init__(self, python: str, double: bool, threads: int) -> None:
        environment = os.environ | {"JAX_ENABLE_X64": str(int(double)), "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
        if threads == 1:
            environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        worker = Path(__file__).with_name("neural_tangents_worker.py")
        self._process = subprocess.Popen(
            [python, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def second(call: Callable[[], Result]) -> Result:
    """The second of two calls, after a pause: the first finds the caches, and sometimes a core, taken by the others,
    whose threads wait busily for their next product for a while."""
    time.sleep(PAUSE)
    call()
    return call()


def timed(function: Callable[[], Tensor]) -> tuple[float, float, Tensor]:
    start, busy = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - start, time.process_time() - busy, result


@cache
def warmed(config: Config) -> Callable[[], Tensor]:
    """torch.func's kernel in single precision, called once."""
    model, x = config.network(torch.float32), config.inputs(torch.float32)
    function = partial(torch_func_ntk, model, x, config.form)
    function()
    return function


def torch_func_seconds(config: Config) -> tuple[float, ...]:
    """Of one call, in the process that this is called in."""
    return timed(warmed(config))[:2]


def setup(config: Config, model: MLP | CNN, x: Tensor, folder: str) -> dict[str, Any]:
    layers = list(model.layers)
    file = f"{folder}/arrays.npz"
    np.savez(file, x=x.numpy(), **{f"w{i}": layer.weight.detach().numpy() for i, layer in enumerate(layers)})
    batches = sorted({config.n, max(8, config.n // 4)})
    if config.infinite and config.kind == "cnn":  # the whole at once would take gigabytes
        batches = sorted({max(4, config.n // 8), max(4, config.n // 4)})
    implementations = ["STRUCTURED_DERIVATIVES"]
    if config.kind == "cnn":  # for dense layers 50 to 180 times slower than structured derivatives
        implementations.append("JACOBIAN_CONTRACTION")
    return {
        "what": "infinite" if config.infinite else "empirical",
        "file": file,
        "kind": config.kind,
        "layers": len(layers),
        "scales": [layer.weight_scale for layer in layers],
        "stds": [layer.weight_scale * layer.weight_std * math.sqrt(layer.fan_in) for layer in layers],
        "activation": config.activation,
        "pooled": config.readout == "pool",
        "form": config.form,
        "implementations": implementations,
        "batches": batches,
    }


def rival_kernel(config: Config, folder: str) -> Tensor:
    """Blocks (i, j) of the upper triangle, (n, m) or (n, m, C, C), as rows c n + i."""
    full = config.form == "full" and not config.infinite
    c = config.outputs if full else 1
    kernel = torch.zeros(c, config.n, c, config.n, dtype=torch.float64)
    for place, block in np.load(f"{folder}/kernel.npz").items():
        i, j = map(int, place.split(","))
        values = torch.from_numpy(block).double()
        values = values.permute(2, 0, 3, 1) if values.ndim == 4 else values[None, :, None]
        kernel[:, i : i + values.shape[1], :, j : j + values.shape[3]] = values
        kernel[:, j : j + values.shape[3], :, i : i + values.shape[1]] = values.permute(2, 3, 0, 1)
    return kernel.reshape(c * config.n, c * config.n)


def run(config: Config, rival: Rival | None, apart: Executor, rounds: int, dtype: torch.dtype) -> None:
    model, x = config.network(dtype), config.inputs(dtype)
    with tempfile.TemporaryDirectory() as folder:
        choices = {} if rival is None else rival.ask(setup=setup(config, model, x, folder))
        able = {name: seconds for name, seconds in choices.items() if seconds is not None}
        best = min(able, key=lambda name: able[name]) if able else None

        def ours() -> Tensor:
            if config.infinite:
                return infinite_ntk(model, x).ntk
            return empirical_ntk(model, None, x, form=config.form)

        ours()
        mine, theirs, rates = [], [], []
        func: list[tuple[float, ...]] = []
        for _ in range(rounds):
            a = torch.randn(1500, 1500, dtype=dtype)
            rates.append(1500**3 / min(timed(lambda a=a: a @ a)[1] for _ in range(3)))
            *seconds, kernel = second(lambda: timed(ours))
            mine.append(seconds)
            if rival is not None and best is not None:
                theirs.append(second(lambda: rival.ask(run=best)))
            if config.func and not config.infinite:
                func.append(second(lambda: apart.submit(torch_func_seconds, config).result()))
        difference = math.nan
        if rival is not None and best is not None:
            rival.ask(save=f"{folder}/kernel.npz")
            other = rival_kernel(config, folder)
            difference = float((kernel.double() - other).norm() / other.norm())
    report(config, model, mine, theirs, func, statistics.median(rates), best, difference)


def report(
    config: Config,
    model: MLP | CNN,
    mine: list[list[float]],
    theirs: list[list[float]],
    func: list[tuple[float, ...]],
    rate: float,
    best: str | None,
    difference: float,
) -> None:
    wall, busy = (statistics.median(pair[i] for pair in mine) for i in range(2))
    cells = [config.name, f"{wall:.3f}", f"{busy:.3f}"]
    for other in (theirs, func):
        if other:
            ratios = (statistics.median(o[i] for o in other) / (wall, busy)[i] for i in range(2))
            cells.append(" / ".join(f"{ratio:.1f}" for ratio in ratios))
        else:
            cells.append("-")
    peak = "-" if config.infinite else f"{multiply_adds(model, config.n, config.form) / rate / busy:.0%}"
    cells += [peak, best or "-", f"{difference:.0e}", f"{os.getloadavg()[0]:.0f}"]
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rival", help="the Python interpreter that has neural-tangents; left out: torch.func alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="kernels whose names hold all of these words")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, median of {arguments.rounds}\n")
    print("| kernel | ours, s | ours, processor s | neural-tangents / ours (wall / processor) | torch.func / ours "
          "| of peak | its best | difference | load |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    fresh = multiprocessing.get_context("spawn")
    for configs, dtype in ((EMPIRICAL, torch.float32), (INFINITE, torch.float64)):
        chosen = [one for one in configs if all(word in one.name.split() for word in arguments.only)]
        if not chosen:
            continue
        rival = Rival(arguments.rival, dtype == torch.float64, arguments.threads) if arguments.rival else None
        for config in chosen:
            with ProcessPoolExecutor(1, fresh, torch.set_num_threads, (arguments.threads,)) as apart:
                run(config, rival, apart, arguments.rounds, dtype)


if __name__ == "__main__":
    main()
