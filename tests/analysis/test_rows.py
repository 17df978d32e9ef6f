"""Networks are averaged only where nothing but seed and training set tells them apart."""

from pathlib import Path

import pandas as pd
import pytest

from ridgescope.analysis.cells import cells, setting_labels
from ridgescope.analysis.experiment import _one_per_size
from ridgescope.analysis.rows import identity
from ridgescope.analysis.runs import Cell

DATA = {"name": "digits", "train_size": 100, "pool_size": 1000, "target": "parity", "root": None}
MODEL = {"_target_": "ridgescope.models.CNN", "width": 8, "depth": 2, "activation": "relu", "readout": "flatten"}
OPTIMISER = {"_target_": "ridgescope.train.optimisers.SGD", "momentum": 0.9}
CONFIG = {
    "data": DATA, "model": MODEL, "optimiser": OPTIMISER, "alpha": 10.0, "seed": 0, "num_seeds": 2, "num_draws": 2,
    "stop": "optimum", "max_steps": 100, "tolerance": 1e-6, "output": "here",
}  # fmt: skip


def cell(data=None, model=None, optimiser=None, **training):
    changed = {"data": DATA | (data or {}), "model": MODEL | (model or {}), "optimiser": OPTIMISER | (optimiser or {})}
    return Cell(Path("cell"), CONFIG | changed | training, [], {}, {})


def network(some: Cell, test: float) -> dict[str, object]:
    return identity(some) | {
        "ridge": 1e-2, "seed": 0, "draw": 0, "converged": True, "krr_test": test, "kappa_entk": 1.0, "kappa_risk": 1.0,
        "kappa_infinite": 1.0, "theory_kappa": 1.0, "theory_width_kappa1": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("other", "label"),
    [
        (cell(model={"readout": "pool"}), "readout pool"),
        (cell(model={"strides": [1, 2]}), "strides [1, 2]"),
        (cell(data={"target": "one_hot"}), "target one_hot"),
        (cell(data={"label_flip": 0.1}), "label_flip 0.1"),
        (cell(optimiser={"_target_": "ridgescope.train.optimisers.Adam"}), "optimiser Adam"),
        (cell(optimiser={"momentum": 0.0}), "momentum 0"),
        (cell(batch_size=10), "batch_size 10"),
    ],
)
def test_networks_that_differ_in_any_option_are_cells_of_their_own(other, label) -> None:
    table = pd.DataFrame([network(cell(), 1.0), network(other, 3.0)])
    assert sorted(cells(table)["krr_test"]) == [1.0, 3.0]
    labels = setting_labels(table)
    assert labels.iloc[1] == f"cnn, {label}"
    assert labels.iloc[0] != labels.iloc[1]
    assert len(_one_per_size([cell(), other])) == 2


@pytest.mark.parametrize("same", [{"seed": 2}, {"tolerance": 1e-8}, {"max_steps": 200}, {"output": "there"}])
def test_seeds_and_what_only_limits_training_are_averaged_over(same) -> None:
    table = pd.DataFrame([network(cell(), 1.0), network(cell(**same), 3.0)])
    assert list(cells(table)["krr_test"]) == [2.0]
    assert set(setting_labels(table)) == {"cnn"}


def test_the_number_of_steps_tells_apart_what_is_trained_for_steps() -> None:
    table = pd.DataFrame([network(cell(stop="steps", max_steps=steps), 1.0) for steps in (10, 1000)])
    assert list(setting_labels(table)) == ["cnn, max_steps 10", "cnn, max_steps 1000"]
