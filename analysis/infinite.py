"""Regression with an architecture's infinite-width kernels, and the theory's prediction of it from the pool.

Letters: P training points, T test points, M pool points, lam ridge.
"""

import math
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ridgescope.analysis.regression import squared_error
from ridgescope.analysis.rows import Row, determined, identity, joined
from ridgescope.analysis.runs import Cell
from ridgescope.models import infinite_ntk
from ridgescope.theory import (
    PoolEstimator,
    Resolvents,
    kernel_ridge_fit,
    pool_estimator,
    resolvent_estimate,
    uneven_kappa,
)
from ridgescope.train.data import PreparedData


@dataclass(frozen=True)
class PoolKernels:
    """Infinite-width kernels of an architecture: pool against pool (M, M) and test against pool (T, M)."""

    ntk: Tensor
    ntk_test: Tensor
    nngp: Tensor
    nngp_test: Tensor
    estimator: PoolEstimator
    _fits: dict[bytes, "InfiniteFits"] = field(default_factory=dict, repr=False)
    _theories: dict[tuple[int, float], Row] = field(default_factory=dict, repr=False)

    def fits(self, data: PreparedData, index: Tensor, num_ridges: int) -> "InfiniteFits":
        """Regression on the training set ``index``, shared by all widths and seeds that are trained on it."""
        key = index.numpy().tobytes()
        if key not in self._fits:
            self._fits[key] = InfiniteFits(self, data, index, num_ridges)
        return self._fits[key]

    def theory(self, size: int, ridge: float) -> Row:
        """The pool's prediction, shared by all training sets of this size."""
        place = size, ridge
        if place not in self._theories:
            self._theories[place] = _theory(self.estimator, size, ridge)
        return self._theories[place]


def pool_kernels(network: nn.Module, data: PreparedData) -> PoolKernels:
    """Raises ``ValueError`` for an architecture without an infinite-width kernel."""
    pool = infinite_ntk(network, data.pool_inputs)
    test = infinite_ntk(network, data.test_inputs, data.pool_inputs)
    return PoolKernels(pool.ntk, test.ntk, pool.nngp, test.nngp, pool_estimator(pool.ntk, data.pool_targets))


class InfiniteFits:
    """Regression with both infinite-width kernels on one training set, once for each ridge."""

    def __init__(self, pool: PoolKernels, data: PreparedData, index: Tensor, num_ridges: int) -> None:
        self._pool, self._data, self._index = pool, data, index
        self.ntk = Resolvents(pool.ntk[index][:, index] / len(index), with_eigenvalues=True)
        self._nngp = Resolvents(pool.nngp[index][:, index] / len(index), num_ridges=num_ridges)
        self._rows: dict[float, Row] = {}

    def at(self, ridge: float) -> Row:
        if ridge not in self._rows:
            row = determined("infinite-width NTK", lambda: self._with_ntk(ridge))
            nngp = determined("infinite-width NNGP", lambda: self._with_nngp(ridge))
            self._rows[ridge] = joined(row, nngp) | self._pool.theory(len(self._index), ridge)
        return self._rows[ridge]

    def _with_ntk(self, ridge: float) -> Row:
        pool, index, data = self._pool, self._index, self._data
        assert self.ntk.eigenvalues is not None
        resolvent = self.ntk.at(ridge)
        fit = kernel_ridge_fit(resolvent, data.pool_targets[index])
        kappa = resolvent_estimate(self.ntk.eigenvalues, ridge=ridge)
        test = pool.ntk_test[:, index] @ fit.dual
        unseen = torch.ones(len(pool.ntk), dtype=torch.bool)
        unseen[index] = False
        rest = pool.ntk[unseen][:, index] @ fit.dual
        heldout = squared_error(torch.cat([test, rest]), torch.cat([data.test_targets, data.pool_targets[unseen]]))
        return {
            "infinite_test": squared_error(test, data.test_targets),
            "infinite_heldout": heldout,
            "infinite_train": fit.train,
            "infinite_gcv": fit.gcv,
            "infinite_loo": fit.loo,
            "infinite_condition": resolvent.certificate.condition(ridge),
            "kappa_infinite": kappa.kappa_corrected,
            "kappa_infinite_se_log": kappa.se_log,
        }

    def _with_nngp(self, ridge: float) -> Row:
        dual = kernel_ridge_fit(self._nngp.at(ridge), self._data.pool_targets[self._index]).dual
        return {"nngp_test": squared_error(self._pool.nngp_test[:, self._index] @ dual, self._data.test_targets)}


def _theory(estimator: PoolEstimator, size: int, ridge: float) -> Row:
    """The pool's prediction at infinite width; missing where the theory has none (a ridgeless pool, say)."""
    try:
        loo = estimator.predict(size, ridge)
        gcv = estimator.predict(size, ridge, form="gcv")
    except ValueError:
        return {}
    row = {
        "theory_test": loo.test,
        "theory_train": loo.train,
        "theory_kappa": loo.kappa1,
        "theory_gcv_test": gcv.test,
    }
    with suppress(ValueError):  # points so uneven that no pool ridge serves
        row["theory_kappa_uneven"] = uneven_kappa(estimator, num_samples=size, ridge=ridge).resolvent
    return row


def infinite_width(cell: Cell, data: PreparedData, pool: PoolKernels) -> list[Row]:
    """The infinite-width kernel on every draw of ``data``, for the cell's ridges: one row for each."""
    rows = []
    for draw in range(len(data.splits.train)):
        fits = pool.fits(data, data.splits.train[draw], len(cell.config["ridges"]))
        rows += [
            identity(cell) | {"draw": draw, "seed": 0, "ridge": float(ridge), "converged": True} | fits.at(float(ridge))
            for ridge in cell.config["ridges"]
        ]
    return rows


def theory_at_width(estimator: PoolEstimator, size: int, ridge: float, inverse_width: float) -> Row:
    """The pool's prediction with N = 1/inverse_width features; at or below zero that is infinite width."""
    width = 1 / inverse_width if inverse_width > 0 else math.inf
    try:
        prediction = estimator.predict(size, ridge, width)
    except ValueError:
        return {}
    return {"theory_width_test": prediction.test, "theory_width_kappa1": prediction.kappa1}
