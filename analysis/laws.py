"""The finite-width law beside every cell: risk and kappa of its networks' kernels, predicted without drawing one.

Two predictions: at the training set of each draw, and, for one hidden layer, averaged over training sets from pool
points alone. A crossed cell of one hidden layer also has its cross risks at the very training sets it was trained on.
All are averages over initialisations by the law of the cell's own architecture: one to three hidden layers, or one or
two convolutions. Where there is no law the values are missing, and the reason is given.

    block_test, block_bias, block_variance, block_train, block_kappa1     at the draw's training set, test points
    block_pool_test, block_pool_kappa1                                    averaged over training sets of P points
    block_pool_same_seed, block_pool_same_draw, block_pool_neither        its other cross risks (docs/attribution.md)
    block_sets_test, _same_seed, _same_draw, _neither                     of a crossed cell, at its own training sets
    block_note, block_pool_note                                           why the numbers are missing, else ''
"""

import math
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import nn

from ridgescope.analysis.attribution import CROSS_COLUMNS, SETS_COLUMNS, theory_cross_risks
from ridgescope.analysis.finite_width import (
    LawKernel,
    block_kernel,
    law_kernel,
    law_of,
    require_neurons_to_spare,
)
from ridgescope.analysis.rows import Row
from ridgescope.analysis.runs import Cell
from ridgescope.models import CNN, MLP
from ridgescope.theory import PoolEstimator, pool_estimator
from ridgescope.theory.blocks import block_pool_law, shared_network
from ridgescope.theory.blocks.fixed_point import Orders
from ridgescope.train.data import PreparedData

LAW_COLUMNS = (
    "block_test", "block_bias", "block_variance", "block_train", "block_kappa1", *CROSS_COLUMNS, "block_pool_kappa1",
    *SETS_COLUMNS,
)  # fmt: skip
NOTES = ("block_note", "block_pool_note")

LAWS = 6  # version of a file of laws; another one is computed again

# The law at M points costs M^3: the effect of the width is taken from this many, the risk at infinite width from all.
POOL_POINTS = 400
# The laws of depth and of a convolution take minutes for every training set above this; `finite_width_law` gives them.
LARGEST = 500
LARGEST_TWO_CONVOLUTIONS = 200
# Of two convolutions, points times outputs: with ten, 100 points take 3 to 7 s for two ridges and 200 take 8 s or more.
LARGEST_OUTPUTS = 1000
# of the first of two convolutions, for each training set: a cell's average is over its training sets as well
DRAWS = 1


@dataclass
class BlockLaws:
    """The laws of the cells of one architecture, in any order; each starts from its neighbour in width or ridge."""

    starts: dict[tuple[object, ...], Orders] = field(default_factory=dict)

    def of_cell(self, cell: Cell, data: PreparedData, estimator: PoolEstimator | None) -> pd.DataFrame:
        """A row per ridge and draw. Cost: the law at P points each, and per ridge the pool law at `POOL_POINTS`.

        ``estimator``: the pool's, of the infinite-width kernel; without it there is no average over training sets.
        """
        network, width = cell.network(data), int(cell.config["model"].get("width", 0))
        rows = []
        ridges = [float(ridge) for ridge in cell.config["ridges"]]
        sizes = cell.train_size, width
        averages = {ridge: self._average(network, data, *sizes, ridge, estimator) for ridge in ridges}
        for draw, index in enumerate(data.splits.train):
            try:
                _require_affordable(network, len(index))
                kernel: LawKernel | None = law_kernel(
                    network, data.pool_inputs[index], data.test_inputs, draws=DRAWS, seed=draw
                )
                reason = ""
            except ValueError as error:
                kernel, reason = None, str(error)
            for ridge in ridges:
                row: Row = {"run": cell.name, "ridge": ridge, "draw": draw, "block_note": reason} | averages[ridge]
                if kernel is not None:
                    row |= self._at_training_set(kernel, data, draw, width, ridge)
                rows.append(row)
        table = pd.DataFrame(rows).reindex(columns=["run", "ridge", "draw", *LAW_COLUMNS, *NOTES])
        if cell.config.get("design") == "crossed" and isinstance(network, MLP) and network.depth == 1:
            for ridge in ridges:
                part = table[table["ridge"] == ridge]
                table.loc[part.index, list(SETS_COLUMNS)] = _at_these_sets(network, data, part, width, ridge)
        return table

    def _at_training_set(self, kernel: LawKernel, data: PreparedData, draw: int, width: int, ridge: float) -> Row:
        index = data.splits.train[draw]
        start = self._start(len(index), draw, ridge)
        try:
            targets = data.pool_targets[index], data.test_targets
            law = law_of(kernel, *targets, width=width, ridge=ridge, start=start)
        except (ValueError, RuntimeError) as error:
            return {"block_note": str(error)}
        self._keep(law.orders, len(index), draw, ridge)
        return {
            "block_test": float(law.test),
            "block_bias": float(law.test_bias),
            "block_variance": float(law.test_variance),
            "block_train": float(law.train),
            "block_kappa1": float(law.kappa1),
        }

    def _average(
        self,
        network: nn.Module,
        data: PreparedData,
        size: int,
        width: int,
        ridge: float,
        estimator: PoolEstimator | None,
    ) -> Row:
        """Infinite width from the whole pool, times the factor by which the width changes it on its first points."""
        if estimator is None:
            return {"block_pool_note": "no infinite-width kernel for this architecture"}
        chosen, overlap = slice(max(size, POOL_POINTS)), size / estimator.size
        targets = data.pool_targets[chosen]
        try:
            kernel = block_kernel(network, data.pool_inputs[chosen])
        except ValueError as error:
            return {"block_pool_note": f"no average over training sets: {error}"}
        try:
            start = self._start(size, "pool", ridge)
            law = block_pool_law(kernel, targets, num_samples=size, ridge=ridge, width=width, start=start)
            require_neurons_to_spare(kernel, width=width, ridge=ridge, kappa1=float(law.kappa1))
            limit = pool_estimator(kernel.limit().train, targets).predict(size, ridge)
            whole = estimator.predict(size, ridge)
        except (ValueError, RuntimeError) as error:
            return {"block_pool_note": str(error)}
        self._keep(law.at_pool.orders, size, "pool", ridge)
        at_width, at_limit, of_whole = (theory_cross_risks(one, overlap) for one in (law, limit, whole))
        return dict(zip(CROSS_COLUMNS, (of_whole * at_width / at_limit).tolist(), strict=True)) | {
            "block_pool_kappa1": whole.kappa1 * law.kappa1 / limit.kappa1,
            "block_pool_note": "",
        }

    def _start(self, size: int, points: object, ridge: float) -> Orders | None:
        """The same points at this ridge and the width before, else at this width and the ridge before."""
        return self.starts.get((size, points, ridge), self.starts.get((size, points)))

    def _keep(self, orders: Orders, size: int, points: object, ridge: float) -> None:
        self.starts[size, points, ridge] = self.starts[size, points] = orders


def _at_these_sets(network: nn.Module, data: PreparedData, rows: pd.DataFrame, width: int, ridge: float) -> list[float]:
    """The four cross risks over the cell's own draws. ``rows``: the law at each draw, with this ridge.

    The covariance of one network's predictors on two training sets is averaged over each draw with the next four: all
    pairs of up to nine draws. Beyond, its spread over pairs (8 %) leaves an error of 1 %.
    """
    sets = data.splits.train
    count = len(sets)
    if rows["block_test"].isna().any():  # refused, as the rows' own notes say
        return [math.nan] * len(SETS_COLUMNS)
    points, place = torch.unique(torch.cat(list(sets)), return_inverse=True)
    try:
        kernel = block_kernel(network, data.pool_inputs[points], data.test_inputs)
        places = place.split([len(index) for index in sets])
        shared = shared_network(kernel, data.pool_targets[points], places, width=width, ridge=ridge)
        pairs = {frozenset((a, (a + k) % count)) for a in range(count) for k in range(1, min(count, 5))}
        seed = torch.stack([shared.covariance(*sorted(pair)) for pair in pairs]).mean()
    except (ValueError, RuntimeError):  # said in the rows' own notes
        return [math.nan] * len(SETS_COLUMNS)
    missed = shared.predictors - data.test_targets
    # sum over pairs a != b = square of the sum, less the squares
    apart = (missed.sum(0).square() - missed.square().sum(0)).sum(1).mean() / (count * (count - 1))
    return [rows["block_test"].mean(), float(apart + seed), rows["block_bias"].mean(), float(apart)]


def _require_affordable(network: nn.Module, size: int) -> None:
    if isinstance(network, MLP) and network.depth == 1:
        return
    largest = LARGEST
    if isinstance(network, CNN) and network.depth == 2:
        largest = min(LARGEST_TWO_CONVOLUTIONS, LARGEST_OUTPUTS // network.num_outputs)
    if size > largest:
        raise ValueError(
            f"{size} training points: the law of this architecture is computed up to {largest} in an analysis; "
            "call ridgescope.analysis.finite_width.finite_width_law for more"
        )
