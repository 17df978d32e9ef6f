"""The pilots and the larger runs that forecasts are scored against: kernels of disjoint pools, and measured risks.

    python benchmarks/forecast_runs.py --folder runs/forecast [--data fashion_mnist digits] [--families linear mlp cnn]

A pilot is a kernel on M points; a run is kernel ridge regression on P other points, tested on points that belong to
neither, all drawn from the training images (Fashion-MNIST's test images are 2 to 5 % harder for these kernels). Kernels
are kept as blocks of rows and columns, risks in runs.parquet: the same command goes on where it was.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.linalg
import torch
from torch import Tensor

from ridgescope.models import CNN, MLP, infinite_ntk
from ridgescope.train.data import PreparedData, encode_targets, prepare_data
from ridgescope.train.files import read_tensors, write_atomically, write_tensors

FAMILIES = ("linear", "mlp", "cnn")
TARGETS = ("one_hot", "parity")
RIDGES = tuple(10 ** (-x / 2) for x in range(4, 12))  # 1e-2 to 3e-6, in units of K(x, x)
# the best ridge is searched further: linear kernels have it between the ridges above, the others below them
SEARCHED = {"linear": tuple(10 ** (-x / 8) for x in range(16, 57) if x % 4 or x > 44)}
SMALL = (1e-6, 1e-7, 1e-8)  # of the other kernels, up to 8000 points


@dataclass(frozen=True)
class Design:
    """Blocks of ``block`` points: ``blocks`` of them for runs of ``sizes`` points, ``pilots`` of them, each a pilot;
    ``test`` further points. The first size is a pilot's: what an ideal method would make of a pilot.
    """

    block: int
    blocks: int
    pilots: int
    sizes: tuple[int, ...]
    test: int

    @property
    def size(self) -> int:
        return self.block * (self.blocks + self.pilots) + self.test

    def pilot(self, i: int) -> slice:
        start = self.block * (self.blocks + i) + self.test
        return slice(start, start + self.block)


DESIGNS = {
    "fashion_mnist": Design(2000, 8, 17, (2000, 4000, 8000, 16000), 10000),  # all training images
    "digits": Design(150, 6, 3, (150, 300, 600, 900), 446),
}
CNN_TEST = 4000  # of the test images, for the CNN's kernel costs twenty times the MLP's


def load(name: str) -> PreparedData:
    """The runs' points first, then the test set, then the pilots'."""
    design = DESIGNS[name]
    data = prepare_data(name, train_size=1, pool_size=design.size, test_size=1, num_draws=1, seed=0)
    tests = slice(design.block * design.blocks, design.block * design.blocks + design.test)
    return replace(data, test_inputs=data.pool_inputs[tests], test_labels=data.pool_labels[tests])


def targets(labels: Tensor, kind: str) -> Tensor:
    return encode_targets(labels, 10, "parity" if kind == "parity" else "one_hot", torch.float64)


def kernel(family: str, x: Tensor, other: Tensor | None = None) -> Tensor:
    """The infinite-width tangent kernel with mean 1 on the diagonal for the MLP; ``x . x'/d`` for linear."""
    if family == "linear":
        return x.flatten(1) @ (x if other is None else other).flatten(1).T / x[0].numel()
    shape, generator = tuple(x.shape[1:]), torch.Generator().manual_seed(0)
    if family == "mlp":
        return infinite_ntk(MLP(shape, 1, width=8, depth=2, activation="relu", generator=generator), x, other).ntk / 3
    strides = (2, 2) if shape[-1] > 8 else (1, 2)
    network = CNN(shape, 1, width=8, depth=2, strides=strides, activation="relu", generator=generator)
    return infinite_ntk(network, x, other, max_hours=100).ntk / 3


@dataclass(frozen=True)
class Store:
    """Blocks of one family's kernel on disk; whatever is missing is computed."""

    folder: Path
    data: PreparedData
    design: Design
    family: str

    @property
    def tests(self) -> int:
        return min(self.design.test, CNN_TEST) if self.family == "cnn" else self.design.test

    def blocks(self) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """(name, left inputs, right inputs) of all blocks, pilots first."""
        d, x = self.design, self.data.pool_inputs
        for i in range(d.pilots):
            yield f"pilot_{i}", x[d.pilot(i)], None
        rows = [x[i * d.block : (i + 1) * d.block] for i in range(d.blocks)]
        for j in range(d.blocks):
            for i in range(j):
                yield f"train_{i}_{j}", rows[i], rows[j]
            yield f"train_{j}_{j}", rows[j], None
            yield f"test_{j}", self.data.test_inputs[: self.tests], rows[j]

    def get(self, name: str, left: Tensor, right: Tensor | None) -> Tensor:
        path = self.folder / f"{self.family}_{name}.safetensors"
        if not path.is_file():
            write_tensors(path, {"kernel": kernel(self.family, left, right)})
        return read_tensors(path)["kernel"]

    def named(self, name: str) -> Tensor:
        return next(self.get(*block) for block in self.blocks() if block[0] == name)

    def gram(self, first: int, count: int) -> Tensor:
        """The Gram matrix of ``count`` blocks from ``first`` on: 8 bytes for each pair of points."""
        b = self.design.block
        whole = torch.empty(count * b, count * b, dtype=torch.float64)
        for j in range(count):
            for i in range(j + 1):
                part = self.named(f"train_{first + i}_{first + j}")
                whole[i * b : (i + 1) * b, j * b : (j + 1) * b] = part
                whole[j * b : (j + 1) * b, i * b : (i + 1) * b] = part.T
        return whole

    def cross(self, first: int, count: int) -> Tensor:
        return torch.cat([self.named(f"test_{first + i}") for i in range(count)], 1)


def predictions(store: Store, first: int, count: int, y: Tensor, ridges: Sequence[float]) -> Iterator[Tensor]:
    """Ridge regression on ``count`` blocks, at the test points, for each ridge: kernels are read once for all."""
    size = count * store.design.block
    if store.family == "linear":  # in the space of its few features
        x = store.data.pool_inputs[first * store.design.block :][:size].flatten(1)
        xt, features = store.data.test_inputs.flatten(1), x.shape[1]
        values, vectors = torch.linalg.eigh(x.T @ x / features)
        projected, seen = vectors.T @ (x.T @ y) / features, xt @ vectors
        for ridge in ridges:
            yield seen @ (projected / (values + size * ridge)[:, None])
        return
    gram, cross = store.gram(first, count), store.cross(first, count)
    for ridge in ridges:
        yield cross @ refined_solve(gram, y, size * ridge)


def refined_solve(gram: Tensor, y: Tensor, shift: float) -> Tensor:
    """``(K + shift)^-1 y`` in float64 from a factorisation in float32 and in place: iterative refinement.

    Half the time of float64, at 4 further bytes for each pair of points. At ridges below 1e-6 the rounding of float32
    is no longer small against the shift, and the factorisation is one of float64.
    """
    kind = torch.float32 if shift >= 1e-6 * len(y) else torch.float64
    factor = np.asfortranarray(gram.to(kind, copy=True).T.numpy())  # of a contiguous tensor: no further copy
    factor[np.diag_indices(len(y))] += shift
    factor = scipy.linalg.cholesky(factor, lower=True, overwrite_a=True, check_finite=False)
    solution, residual = torch.zeros_like(y), y
    for _ in range(50):
        step = scipy.linalg.cho_solve((factor, True), residual.to(kind).numpy(), check_finite=False)
        solution = solution + torch.from_numpy(step).double()
        residual = y - gram @ solution - shift * solution
        if float(residual.norm() / y.norm()) < 1e-8:
            return solution
    raise RuntimeError(f"refinement stopped at a residual of {float(residual.norm() / y.norm()):.1e}")


def measure(store: Store, size: int, draw: int, ridges: Sequence[float], name: str) -> list[dict[str, object]]:
    """Risk and accuracy of one training set at every ridge, for every target."""
    d, data = store.design, store.data
    count = size // d.block
    first = draw * count
    rows = slice(first * d.block, (first + count) * d.block)
    ys = [targets(data.pool_labels[rows], kind) for kind in TARGETS]
    yt = [targets(data.test_labels[: store.tests], kind) for kind in TARGETS]
    found = []
    for ridge, predicted in zip(ridges, predictions(store, first, count, torch.cat(ys, 1), ridges), strict=True):
        for kind, f, y in zip(TARGETS, predicted.split([y.shape[1] for y in ys], 1), yt, strict=True):
            errors = (f - y).square().sum(1)
            right = (f.argmax(1) == y.argmax(1)) if y.shape[1] > 1 else (f * y > 0)[:, 0]
            row: dict[str, object] = {"data": name, "family": store.family, "target": kind, "P": size, "draw": draw}
            row |= {"ridge": ridge, "test": float(errors.mean()), "test_se": float(errors.std() / len(y) ** 0.5)}
            found.append(row | {"accuracy": float(right.double().mean()), "tests": len(y)})
    return found


def runs(folder: Path) -> pd.DataFrame:
    """What has been measured so far."""
    path = folder / "runs.parquet"
    return pd.read_parquet(path) if path.is_file() else pd.DataFrame(columns=["data", "family", "P", "draw", "ridge"])


def missing(folder: Path, name: str, families: list[str]) -> Iterator[tuple[str, int, int, list[float]]]:
    """(family, P, draw, ridges) of the runs without a row."""
    table, design = runs(folder), DESIGNS[name]
    done = {tuple(row) for row in table[["data", "family", "P", "draw", "ridge"]].to_numpy().tolist()}
    for family in families:
        for size in design.sizes:
            wanted = RIDGES + SEARCHED.get(family, SMALL) if family == "linear" or size <= 8000 else RIDGES[::2]
            for draw in range(design.blocks * design.block // size):
                ridges = [ridge for ridge in wanted if (name, family, size, draw, ridge) not in done]
                if ridges:
                    yield family, size, draw, ridges


def add(folder: Path, rows: list[dict[str, object]]) -> None:
    table = pd.concat([runs(folder), pd.DataFrame(rows)], ignore_index=True)
    write_atomically(folder / "runs.parquet", lambda path: table.to_parquet(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/forecast"))
    parser.add_argument("--data", nargs="+", default=list(DESIGNS))
    parser.add_argument("--families", nargs="+", default=list(FAMILIES))
    parser.add_argument("--pilots", type=int, default=17)
    parser.add_argument("--largest", type=int, default=16000)
    options = parser.parse_args()
    for name in options.data:
        data = load(name)
        stores = {f: Store(options.folder / name, data, DESIGNS[name], f) for f in options.families}
        for store in stores.values():
            for block in store.blocks():
                kind, number = block[0].split("_")[:2]
                if kind == "pilot" and int(number) < options.pilots:
                    store.get(*block)
        for family, size, draw, ridges in list(missing(options.folder, name, options.families)):
            if size <= options.largest:
                started = time.perf_counter()
                add(options.folder, measure(stores[family], size, draw, ridges, name))
                seconds = time.perf_counter() - started
                print(f"{name} {family} P={size} draw={draw}: {len(ridges)} ridges in {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
