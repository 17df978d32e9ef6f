"""What each trained network and its kernels say: risks, effective ridges, and the theory's numbers beside them.

Three links are measured on the same training set and the same test points:

    theory (pool) -> infinite-width kernel -> the network's own kernel -> the trained network

Letters: P training points, T test points, M pool points, C outputs, s kernel scale, lam ridge, N_eff effective
feature number. Every kernel is divided by s. Risks are summed over outputs, mean over points.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ridgescope.analysis.regression import FullKernelRidge, full_kernel_ridge, squared_error
from ridgescope.analysis.runs import Cell
from ridgescope.models import conjugate_kernel, empirical_ntk, infinite_ntk, linearised_predict
from ridgescope.theory import (
    PoolEstimator,
    effective_width,
    kernel_ridge,
    pool_estimator,
    resolvent_estimate,
)
from ridgescope.train.data import PreparedData

Row = dict[str, Any]

# What a row may lack (no infinite-width kernel, a diverged network, ...) is a missing value, never a missing column.
COLUMNS = (
    "infinite_test", "infinite_heldout", "infinite_train", "infinite_gcv", "infinite_loo", "nngp_test",
    "kappa_infinite", "kappa_infinite_se_log", "theory_test", "theory_train", "theory_kappa", "theory_gcv_test",
    "krr_last_test", "inverse_width", "inverse_width_se", "effective_width", "network_test", "network_train",
    "network_accuracy", "kappa_risk", "kernel_movement", "kappa_final", "krr_final_test",
)  # fmt: skip


@dataclass(frozen=True)
class PoolKernels:
    """Infinite-width kernels of an architecture: pool against pool (M, M) and test against pool (T, M)."""

    ntk: Tensor
    ntk_test: Tensor
    nngp: Tensor
    nngp_test: Tensor
    estimator: PoolEstimator


def pool_kernels(network: nn.Module, data: PreparedData) -> PoolKernels:
    """Raises ``ValueError`` for an architecture without an infinite-width kernel."""
    pool = infinite_ntk(network, data.pool_inputs)
    test = infinite_ntk(network, data.test_inputs, data.pool_inputs)
    return PoolKernels(pool.ntk, test.ntk, pool.nngp, test.nngp, pool_estimator(pool.ntk, data.pool_targets))


@dataclass(frozen=True)
class Measured:
    """A network's row, and the predictions on the test points (T, C) of itself and of its kernel at initialisation;
    those of a network that diverged are NaN."""

    row: Row
    network: Tensor
    kernel: Tensor


def measure_group(
    cells: Sequence[Cell], data: Sequence[PreparedData], pool: PoolKernels | None, advance: Callable[[], None]
) -> list[list[Measured]]:
    """What is measured of each network, for cells that differ in training-set size only, in the order of ``cells``.

    Training sets are nested, so the initial kernel is computed once, at the largest size, for each seed and draw.
    ``advance`` is called after each network.
    """
    largest = max(range(len(cells)), key=lambda i: cells[i].train_size)
    network = cells[largest].network(data[largest])
    rows: list[list[Measured]] = [[] for _ in cells]
    for seed in cells[0].seeds:
        start = cells[largest].initial_of(seed)
        for draw in range(data[largest].splits.train.shape[0]):
            initial = _InitialKernels(network, start, data[largest], draw)
            for i, cell in enumerate(cells):
                chosen = [(m, row) for m, row in enumerate(cell.members) if (row["seed"], row["draw"]) == (seed, draw)]
                if chosen:
                    point = _TrainingSet(cell, data[i], draw, pool)
                    for member, record in chosen:
                        rows[i].append(_measure(network, cell, member, record, point, initial))
                        advance()
    return [sorted(part, key=lambda measured: measured.row["member"]) for part in rows]


class _InitialKernels:
    """Kernels at initialisation on the largest training set of a draw; smaller sets are corners of them."""

    def __init__(self, network: nn.Module, parameters: dict[str, Tensor], data: PreparedData, draw: int) -> None:
        inputs = data.pool_inputs[data.splits.train[draw]]
        self.parameters, self.scale, self.outputs = parameters, _scale(network), data.num_outputs
        self.size = len(inputs)
        self._full = empirical_ntk(network, parameters, inputs) / self.scale
        self._cross: Tensor | None = None  # with one output the trace form is the full kernel
        if self.outputs > 1:
            self._cross = empirical_ntk(network, parameters, data.test_inputs, inputs, form="trace") / self.scale
        self._last: tuple[Tensor, Tensor] | None = None
        with suppress(ValueError):  # a network without a linear readout has no last-layer kernel
            gram = conjugate_kernel(network, parameters, inputs) / self.scale
            self._last = gram, conjugate_kernel(network, parameters, data.test_inputs, inputs) / self.scale

    def full(self, size: int) -> Tensor:
        c, n = self.outputs, self.size
        return self._full.view(c, n, c, n)[:, :size, :, :size].reshape(c * size, c * size)

    def trace(self, size: int) -> tuple[Tensor, Tensor | None]:
        c, n = self.outputs, self.size
        blocks = self._full.view(c, n, c, n)[:, :size, :, :size].diagonal(dim1=0, dim2=2)
        return blocks.mean(-1), None if self._cross is None else self._cross[:, :size]

    def last(self, size: int) -> tuple[Tensor, Tensor] | None:
        return None if self._last is None else (self._last[0][:size, :size], self._last[1][:, :size])


class _TrainingSet:
    """One draw of a cell, and what the infinite-width kernel and the theory say of it; cached per ridge."""

    def __init__(self, cell: Cell, data: PreparedData, draw: int, pool: PoolKernels | None) -> None:
        self.data, self.pool, self.index = data, pool, data.splits.train[draw]
        self.inputs, self.targets = data.pool_inputs[self.index], data.pool_targets[self.index]
        self.size = len(self.index)
        self._infinite: dict[float, Row] = {}
        self.spectrum: Tensor | None = None
        if pool is not None:
            self.spectrum = torch.linalg.eigvalsh(self._corner(pool.ntk) / self.size)

    def _corner(self, kernel: Tensor) -> Tensor:
        return kernel[self.index][:, self.index]

    def infinite(self, ridge: float) -> Row:
        """Kernel ridge regression with the infinite-width kernels."""
        if self.pool is None or self.spectrum is None:
            return {}
        if ridge not in self._infinite:
            self._infinite[ridge] = self._fit(ridge, self.pool, self.spectrum)
        return self._infinite[ridge]

    def _fit(self, ridge: float, pool: PoolKernels, spectrum: Tensor) -> Row:
        fit = kernel_ridge(self._corner(pool.ntk), self.targets, ridge)
        kappa = resolvent_estimate(spectrum, ridge=ridge)
        test = pool.ntk_test[:, self.index] @ fit.dual
        unseen = torch.ones(len(pool.ntk), dtype=torch.bool)
        unseen[self.index] = False
        rest = pool.ntk[unseen][:, self.index] @ fit.dual
        nngp = kernel_ridge(self._corner(pool.nngp), self.targets, ridge)
        heldout = squared_error(
            torch.cat([test, rest]), torch.cat([self.data.test_targets, self.data.pool_targets[unseen]])
        )
        return {
            "infinite_test": squared_error(test, self.data.test_targets),
            "infinite_heldout": heldout,
            "infinite_train": fit.train,
            "infinite_gcv": fit.gcv,
            "infinite_loo": fit.loo,
            "kappa_infinite": kappa.kappa_corrected,
            "kappa_infinite_se_log": kappa.se_log,
            "nngp_test": squared_error(pool.nngp_test[:, self.index] @ nngp.dual, self.data.test_targets),
        } | _theory(pool.estimator, self.size, ridge)


def _theory(estimator: PoolEstimator, size: int, ridge: float) -> Row:
    """The pool's prediction at infinite width; missing where the theory has none (a ridgeless pool, say)."""
    try:
        loo = estimator.predict(size, ridge)
        gcv = estimator.predict(size, ridge, form="gcv")
    except ValueError:
        return {}
    return {
        "theory_test": loo.test,
        "theory_train": loo.train,
        "theory_kappa": loo.kappa1,
        "theory_gcv_test": gcv.test,
    }


def infinite_width(cell: Cell, data: PreparedData, pool: PoolKernels) -> list[Row]:
    """The infinite-width kernel on every draw of ``data``, for the cell's ridges: one row for each."""
    rows = []
    for draw in range(len(data.splits.train)):
        point = _TrainingSet(cell, data, draw, pool)
        rows += [
            identity(cell) | {"draw": draw, "seed": 0, "ridge": float(ridge), "converged": True} | point.infinite(ridge)
            for ridge in cell.config["ridges"]
        ]
    return rows


def identity(cell: Cell) -> Row:
    """The columns that say which cell a row belongs to."""
    config, model = cell.config, cell.config["model"]
    return {
        "run": cell.name,
        "data": config["data"]["name"],
        "model": str(model["_target_"]).rsplit(".", 1)[-1].lower(),
        "width": int(model.get("width", 0)),
        "depth": int(model.get("depth", 0)),
        "activation": str(model.get("activation", "")),
        "parameterisation": str(model.get("parameterisation", "")),
        "alpha": float(config["alpha"]),
        "P": cell.train_size,
    }


def theory_at_width(estimator: PoolEstimator, size: int, ridge: float, inverse_width: float) -> Row:
    """The pool's prediction with N = 1/inverse_width features; at or below zero that is infinite width."""
    width = 1 / inverse_width if inverse_width > 0 else math.inf
    try:
        prediction = estimator.predict(size, ridge, width)
    except ValueError:
        return {}
    return {"theory_width_test": prediction.test, "theory_width_kappa1": prediction.kappa1}


def _measure(
    network: nn.Module, cell: Cell, member: int, record: Row, point: _TrainingSet, initial: _InitialKernels
) -> Measured:
    ridge = float(record["ridge"])
    before = initial.full(point.size)
    start = full_kernel_ridge(before, point.targets, ridge)
    kernel = _linearised(network, initial.parameters, point, start, initial.scale)
    row = identity(cell) | {
        "member": member,
        "ridge": ridge,
        "seed": int(record["seed"]),
        "draw": int(record["draw"]),
        "status": record["status"],
        "converged": record["status"] in ("converged", "stagnated"),
        "steps": int(record["steps"]),
        "optimality_gap": record["optimality_gap"],
        "krr_test": squared_error(kernel, point.data.test_targets),
        "krr_train": start.train,
        "kappa_entk": start.kappa,
        "entk_gcv": start.gcv,
        "entk_loo": start.loo,
    }
    row |= point.infinite(ridge) | _trace_and_last(point, initial, ridge, row["krr_test"])
    if point.spectrum is not None and ridge > 0:
        row |= _width(point.spectrum, start.df1, ridge)
    predictions = torch.full_like(kernel, math.nan)
    if record["status"] != "diverged":
        after, predictions = _after_training(network, cell, member, point, initial, before, ridge)
        row |= after
    return Measured(row, predictions, kernel)


def _after_training(
    network: nn.Module,
    cell: Cell,
    member: int,
    point: _TrainingSet,
    initial: _InitialKernels,
    before: Tensor,
    ridge: float,
) -> tuple[Row, Tensor]:
    """The trained network itself and regression with its kernel after training; its predictions on the test points."""
    alpha, final = float(cell.config["alpha"]), cell.final_of(member)

    def predict(inputs: Tensor) -> Tensor:
        pairs = [
            functional_call(network, final, (x,)) - functional_call(network, initial.parameters, (x,))
            for x in inputs.split(500)
        ]
        return alpha * torch.cat(pairs)

    with torch.no_grad():
        test, train = predict(point.data.test_inputs), predict(point.inputs)
    test_risk, train_risk = squared_error(test, point.data.test_targets), squared_error(train, point.targets)
    after = empirical_ntk(network, final, point.inputs) / initial.scale
    movement = float((after - before).norm() / before.norm())
    fit = full_kernel_ridge(after, point.targets, ridge)
    row = {
        "network_test": test_risk,
        "network_train": train_risk,
        "network_accuracy": _accuracy(test, point.data.test_targets),
        "kappa_risk": ridge * math.sqrt(test_risk / train_risk) if ridge > 0 and train_risk > 0 else math.nan,
        "kernel_movement": movement,
        "kappa_final": fit.kappa,
        "krr_final_test": squared_error(
            _linearised(network, final, point, fit, initial.scale), point.data.test_targets
        ),
    }
    return row, test


def _trace_and_last(point: _TrainingSet, initial: _InitialKernels, ridge: float, full_test: float) -> Row:
    """Regression with the trace form of the kernel, and with the last layer's kernel alone.

    ``full_test`` is the test risk with the full kernel, which is that of the trace form where there is one output.
    """
    gram, cross = initial.trace(point.size)
    fit = kernel_ridge(gram, point.targets, ridge)
    kappa = resolvent_estimate(torch.linalg.eigvalsh(gram / point.size), ridge=ridge)
    row = {
        "krr_trace_test": full_test if cross is None else squared_error(cross @ fit.dual, point.data.test_targets),
        "kappa_trace": kappa.kappa,
        "kappa_entk_se_log": kappa.se_log,
        "trace_gcv": fit.gcv,
        "trace_loo": fit.loo,
    }
    last = initial.last(point.size)
    if last is not None and ridge > 0:  # N features on P > N points are singular without a ridge
        readout = kernel_ridge(last[0], point.targets, ridge)
        row["krr_last_test"] = squared_error(last[1] @ readout.dual, point.data.test_targets)
    return row


def _width(spectrum: Tensor, df1: float, ridge: float) -> Row:
    try:
        estimate = effective_width(spectrum, df1, ridge)
    except ValueError:  # more degrees of freedom than the infinite-width kernel has
        return {}
    return {
        "inverse_width": estimate.inverse_width,
        "inverse_width_se": estimate.se,
        "effective_width": estimate.width,
    }


def _linearised(
    network: nn.Module, parameters: dict[str, Tensor], point: _TrainingSet, fit: FullKernelRidge, scale: float
) -> Tensor:
    """Regression with the full kernel on the test points, by one backward and one forward derivative."""
    return linearised_predict(network, parameters, point.inputs, fit.dual / scale, point.data.test_inputs)


def _accuracy(predictions: Tensor, targets: Tensor) -> float:
    if predictions.shape[1] == 1:
        return float((predictions.sign() == targets.sign()).double().mean())
    return float((predictions.argmax(1) == targets.argmax(1)).double().mean())


def _scale(network: nn.Module) -> float:
    return float(getattr(network, "kernel_scale", 1.0))
