"""What each trained network and its kernels say: risks, effective ridges, and the theory's numbers beside them.

Three links are measured on the same training set and the same test points:

    theory (pool) -> infinite-width kernel -> the network's own kernel -> the trained network

Letters: P training points, T test points, M pool points, C outputs, s kernel scale, lam ridge, N_eff effective
feature number. Every kernel is divided by s. Risks are summed over outputs, mean over points.

A kernel whose certificate refuses the ridge gives no number: its columns are missing, and ``undetermined`` says why.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from ridgescope.analysis.infinite import PoolKernels
from ridgescope.analysis.regression import FullKernelRidge, full_kernel_ridge_fit, squared_error
from ridgescope.analysis.rows import Row, determined, identity, joined, linearised
from ridgescope.analysis.runs import Cell
from ridgescope.models import KernelStore, conjugate_kernel, empirical_ntk, linearised_predict
from ridgescope.theory import Resolvents, effective_width, kernel_ridge_fit, resolvent_estimate
from ridgescope.train.data import PreparedData

# What a row may lack (no infinite-width kernel, a diverged network, ...) is a missing value, never a missing column.
COLUMNS = (
    "krr_test", "krr_train", "kappa_entk", "entk_gcv", "entk_loo", "krr_trace_test", "kappa_trace",
    "kappa_entk_se_log", "trace_gcv", "trace_loo", "entk_condition", "final_condition", "infinite_condition",
    "infinite_test", "infinite_heldout", "infinite_train", "infinite_gcv", "infinite_loo", "nngp_test",
    "kappa_infinite", "kappa_infinite_se_log", "theory_test", "theory_train", "theory_kappa", "theory_kappa_uneven",
    "theory_gcv_test",
    "krr_last_test", "inverse_width", "inverse_width_se", "effective_width", "network_test", "network_train",
    "network_accuracy", "kappa_risk", "kernel_movement", "kappa_final", "krr_final_test",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A network's row, and the predictions on the test points (T, C) of itself and of its kernel at initialisation;
    those of a network that diverged are NaN."""

    row: Row
    network: Tensor
    kernel: Tensor


def measure_group(
    cells: Sequence[Cell],
    data: Sequence[PreparedData],
    pool: PoolKernels | None,
    advance: Callable[[], None],
    store: KernelStore | None = None,
) -> list[list[Measured]]:
    """What is measured of each network, for cells that differ in training-set size only, in the order of ``cells``.

    Training sets are nested, so the initial kernel is computed once, at the largest size, for each seed and draw.
    ``advance`` is called after each network; tangent kernels are read from ``store`` where they are there already.
    """
    largest = max(range(len(cells)), key=lambda i: cells[i].train_size)
    network = cells[largest].network(data[largest])
    rows: list[list[Measured]] = [[] for _ in cells]
    for seed in cells[0].seeds:
        start = cells[largest].initial_of(seed)
        for draw in range(data[largest].splits.train.shape[0]):
            initial = _InitialKernels(network, start, data[largest], draw, store)
            for i, cell in enumerate(cells):
                chosen = [(m, row) for m, row in enumerate(cell.members) if (row["seed"], row["draw"]) == (seed, draw)]
                if chosen:
                    ridges = {float(record["ridge"]) for _, record in chosen}
                    point = _TrainingSet(cell, data[i], draw, pool)
                    kernels = _KernelsAtStart(initial, point, len(ridges))
                    for member, record in chosen:
                        rows[i].append(_measure(network, cell, member, record, point, kernels))
                        advance()
    return [sorted(part, key=lambda measured: measured.row["member"]) for part in rows]


class _InitialKernels:
    """Kernels at initialisation on the largest training set of a draw; smaller sets are corners of them."""

    def __init__(
        self,
        network: nn.Module,
        parameters: dict[str, Tensor],
        data: PreparedData,
        draw: int,
        store: KernelStore | None,
    ) -> None:
        inputs = data.pool_inputs[data.splits.train[draw]]
        self.store = store
        self.parameters, self.scale, self.outputs = parameters, _scale(network), data.num_outputs
        self.size = len(inputs)
        self._full = empirical_ntk(network, parameters, inputs, path=store) / self.scale
        self._cross: Tensor | None = None  # with one output the trace form is the full kernel
        if self.outputs > 1:
            cross = empirical_ntk(network, parameters, data.test_inputs, inputs, form="trace", path=store)
            self._cross = cross / self.scale
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
    """One draw of a cell, and what the infinite-width kernel and the theory say of it."""

    def __init__(self, cell: Cell, data: PreparedData, draw: int, pool: PoolKernels | None) -> None:
        self.data, self.index = data, data.splits.train[draw]
        self.inputs, self.targets = data.pool_inputs[self.index], data.pool_targets[self.index]
        self.size = len(self.index)
        self._infinite = None if pool is None else pool.fits(data, self.index, len(cell.config["ridges"]))

    @property
    def spectrum(self) -> Tensor | None:
        """Eigenvalues of the infinite-width K/P."""
        return None if self._infinite is None else self._infinite.ntk.eigenvalues

    def infinite(self, ridge: float) -> Row:
        """Kernel ridge regression with the infinite-width kernels."""
        return {} if self._infinite is None else self._infinite.at(ridge)


class _KernelsAtStart:
    """The kernels of one network at initialisation on one training set, each decomposed once for all ridges."""

    def __init__(self, initial: _InitialKernels, point: _TrainingSet, num_ridges: int) -> None:
        self.parameters, self.scale, self.store = initial.parameters, initial.scale, initial.store
        gram, self.cross = initial.trace(point.size)
        last = initial.last(point.size)
        self.full = Resolvents(initial.full(point.size) / point.size, num_ridges=num_ridges)
        self.trace = Resolvents(gram / point.size, with_eigenvalues=True)
        self.last = None if last is None else (Resolvents(last[0] / point.size, num_ridges=num_ridges), last[1])


def _measure(
    network: nn.Module, cell: Cell, member: int, record: Row, point: _TrainingSet, kernels: _KernelsAtStart
) -> Measured:
    ridge = float(record["ridge"])
    row = identity(cell) | {
        "member": member,
        "ridge": ridge,
        "seed": int(record["seed"]),
        "draw": int(record["draw"]),
        "status": record["status"],
        "converged": record["status"] in ("converged", "stagnated"),
        "steps": int(record["steps"]),
        "optimality_gap": record["optimality_gap"],
    }
    missing = torch.full_like(point.data.test_targets, math.nan)
    kernel, start = missing, determined("kernel at initialisation", lambda: _at_start(network, point, kernels, ridge))
    if "undetermined" not in start:
        kernel = start.pop("predictions")
    trace = determined("trace kernel", lambda: _trace(point, kernels, ridge, start.get("krr_test", math.nan)))
    last = determined("last-layer kernel", lambda: _last(point, kernels, ridge))
    after: Row = {}
    predictions = missing
    if record["status"] != "diverged":
        after, predictions = _after_training(network, cell, member, point, kernels, ridge)
    return Measured(joined(row, start, point.infinite(ridge), trace, last, after), predictions, kernel)


def _at_start(network: nn.Module, point: _TrainingSet, kernels: _KernelsAtStart, ridge: float) -> Row:
    """Regression with the full kernel at initialisation; its ``predictions`` on the test points too."""
    resolvent = kernels.full.at(ridge)
    fit = full_kernel_ridge_fit(resolvent, point.targets)
    predictions = _linearised(network, kernels.parameters, point, fit, kernels.scale)
    row = {
        "predictions": predictions,
        "krr_test": squared_error(predictions, point.data.test_targets),
        "krr_train": fit.train,
        "kappa_entk": fit.kappa,
        "entk_gcv": fit.gcv,
        "entk_loo": fit.loo,
        "entk_condition": resolvent.certificate.condition(ridge),
    }
    return row | (_width(point.spectrum, fit.df1, ridge) if point.spectrum is not None and ridge > 0 else {})


def _after_training(
    network: nn.Module,
    cell: Cell,
    member: int,
    point: _TrainingSet,
    kernels: _KernelsAtStart,
    ridge: float,
) -> tuple[Row, Tensor]:
    """The trained network itself and regression with its kernel after training; its predictions on the test points."""
    alpha, start, final = float(cell.config["alpha"]), kernels.parameters, cell.final_of(member)
    moved = {name: value - start[name] for name, value in final.items()}
    if linearised(cell):  # its tangent stays where it began
        final = start

    def change(x: Tensor) -> Tensor:
        if linearised(cell):
            return jvp(lambda at: functional_call(network, at, (x,)), (start,), (moved,))[1]
        return functional_call(network, final, (x,)) - functional_call(network, start, (x,))

    def predict(inputs: Tensor) -> Tensor:
        return alpha * torch.cat([change(x) for x in inputs.split(500)])

    def with_kernel() -> Row:
        resolvent = Resolvents(after).at(ridge)
        fit = full_kernel_ridge_fit(resolvent, point.targets)
        fitted = _linearised(network, final, point, fit, kernels.scale)
        return {
            "kappa_final": fit.kappa,
            "krr_final_test": squared_error(fitted, point.data.test_targets),
            "final_condition": resolvent.certificate.condition(ridge),
        }

    with torch.no_grad():
        test, train = predict(point.data.test_inputs), predict(point.inputs)
    test_risk, train_risk = squared_error(test, point.data.test_targets), squared_error(train, point.targets)
    after = empirical_ntk(network, final, point.inputs, path=kernels.store) / (kernels.scale * point.size)
    before = kernels.full.matrix
    row = {
        "network_test": test_risk,
        "network_train": train_risk,
        "network_accuracy": math.nan if point.data.num_classes is None else _accuracy(test, point.data.test_targets),
        "kappa_risk": ridge * math.sqrt(test_risk / train_risk) if ridge > 0 and train_risk > 0 else math.nan,
        "kernel_movement": float((after - before).norm() / before.norm()),
    }
    return row | determined("kernel after training", with_kernel), test


def _trace(point: _TrainingSet, kernels: _KernelsAtStart, ridge: float, full_test: float) -> Row:
    """Regression with the trace form of the kernel.

    ``full_test`` is the test risk with the full kernel, which is that of the trace form where there is one output.
    """
    assert kernels.trace.eigenvalues is not None
    fit = kernel_ridge_fit(kernels.trace.at(ridge), point.targets)
    kappa = resolvent_estimate(kernels.trace.eigenvalues, ridge=ridge)
    cross, targets = kernels.cross, point.data.test_targets
    return {
        "krr_trace_test": full_test if cross is None else squared_error(cross @ fit.dual, targets),
        "kappa_trace": kappa.kappa,
        "kappa_entk_se_log": kappa.se_log,
        "trace_gcv": fit.gcv,
        "trace_loo": fit.loo,
    }


def _last(point: _TrainingSet, kernels: _KernelsAtStart, ridge: float) -> Row:
    """Regression with the last layer's kernel alone: N features on P > N points are singular without a ridge."""
    if kernels.last is None or ridge <= 0:
        return {}
    resolvents, cross = kernels.last
    dual = kernel_ridge_fit(resolvents.at(ridge), point.targets).dual
    return {"krr_last_test": squared_error(cross @ dual, point.data.test_targets)}


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
