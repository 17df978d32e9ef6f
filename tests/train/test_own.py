"""Data of the user's own: classes or real targets, one set or two, and never other points under the same name."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from ridgescope.train.data import PreparedData, prepare_data
from ridgescope.train.errors import UserError

Outcome = tuple[int | str | None, str, str]

SOURCE = """
import torch

SHIFT = 0.0

def points(n=60):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

def classes():
    x = points()
    return x, (x[:, 0] > 0).int() + (x[:, 1] > 0).int()

def images():
    x = torch.arange(40 * 3 * 4, dtype=torch.uint8).view(40, 1, 3, 4)
    return x[:30], torch.arange(30) % 3, x[30:], torch.arange(10) % 3

def regression():
    x = points()
    return x, 3 + x[:, :2].sin() + SHIFT

def one_number():
    return points(), points()[:, 0]

def flat():
    return torch.ones(60), torch.arange(60)

def numbers():
    return 5, 6

def hole():
    x = points()
    return x, x[:, 0] / 0

def negative():
    return points(), torch.full((60,), -1)

def unlike():
    return points(), points()[:, 0], points()[:, :3], points()[:, 0]

def broken():
    raise OSError("disk")
"""


@pytest.fixture
def there(own_module: Callable[[str, str], Path]) -> Path:
    return own_module("mydata", SOURCE)


def prepared(function: str, **changes: Any) -> PreparedData:
    options: dict[str, Any] = {"train_size": 10, "pool_size": 30, "test_size": 10, "num_draws": 2} | changes
    return prepare_data(f"mydata:{function}", **options)


@pytest.mark.usefixtures("there")
def test_classes_are_encoded_as_those_of_any_data_set() -> None:
    data = prepared("classes")
    assert (data.in_shape, data.num_outputs, data.num_classes) == ((5,), 3, 3)
    torch.testing.assert_close(data.pool_inputs.square().mean(1), torch.ones(30, dtype=torch.float64))
    torch.testing.assert_close(data.test_targets.sum(1), torch.zeros(10, dtype=torch.float64))
    assert set(data.splits.pool.tolist()).isdisjoint(data.splits.test.tolist())


@pytest.mark.usefixtures("there")
def test_given_test_points_stay_test_points() -> None:
    data = prepared("images", centre=False, unit_norm=False)
    assert data.in_shape == (1, 3, 4)
    bytes_of = torch.arange(480, dtype=torch.float64) % 256 / 255
    last = bytes_of.view(40, 1, 3, 4)[30:]
    torch.testing.assert_close(data.test_inputs.sum(0), last.sum(0))


@pytest.mark.usefixtures("there")
def test_real_targets_are_given_less_the_pools_mean() -> None:
    data = prepared("regression", target="values")
    assert (data.num_outputs, data.num_classes) == (2, None)
    torch.testing.assert_close(data.pool_targets.mean(0), torch.zeros(2, dtype=torch.float64))
    mean = data.pool_labels.mean(0)
    torch.testing.assert_close(data.test_targets, data.test_labels - mean)
    assert prepared("one_number", target="values").num_outputs == 1


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        ("regression", {}, "the targets of mydata:regression are real numbers, not classes; set data.target=values"),
        ("regression", {"target": "values", "label_flip": 0.1}, "label_flip=0.1 is a share of class labels"),
        ("classes", {"target": "values"}, "data.target=values is for real targets; mydata:classes has class labels"),
        ("classes", {"root": "/tmp"}, "data.root=/tmp is for data sets with files"),
        ("classes", {"pool_size": 55}, r"data.pool_size=55 \+ data.test_size=10 > 60 points"),
        ("flat", {}, r"returned inputs of shape \(60,\); they must be \(n, ...\)"),
        ("numbers", {}, "returned single numbers"),
        ("hole", {"target": "values"}, "returned targets with NaN or infinity"),
        ("negative", {}, "returned class labels from -1 to -1"),
        ("unlike", {"target": "values"}, "returned training and test points of other shapes"),
        ("broken", {}, "mydata:broken did not return data: OSError: disk"),
        ("missing", {}, "mydata has no callable missing"),
    ],
)
def test_every_misfit_is_one_line(function: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepared(function, **changes)
    assert "\n" not in str(caught.value)


def test_a_cell_of_own_data_is_trained_and_measured_and_refuses_other_points(
    there: Path, call: Callable[..., Outcome]
) -> None:
    sizes = ["data.train_size=20", "data.pool_size=40", "data.test_size=20", "num_seeds=2", "num_draws=2"]
    words = ["data=own", "data.name=mydata:regression", "data.target=values", *sizes, "model.width=16", "ridges=[1e-1]"]
    status, _, errors = call("train", *words)
    assert status == 0, errors
    cells = list((there / "runs" / "runs" / "cells").iterdir())
    assert [cell.name.startswith("regression-mlp-w16-P20-") for cell in cells] == [True]
    status, _, errors = call("analyse", "folder=runs/runs")
    assert status == 0, errors
    networks = pd.read_parquet(there / "runs" / "runs" / "report" / "networks.parquet")
    assert (networks["network_test"] / networks["krr_test"] - 1).abs().max() < 0.2
    assert networks["theory_test"].notna().all()
    assert networks["network_accuracy"].isna().all()

    source = (there / "mydata.py").read_text()
    (there / "mydata.py").write_text(source.replace("SHIFT = 0.0", "SHIFT = 0.5"))
    sys.modules.pop("mydata")
    status, _, errors = call("train", *words, "alpha=5")
    assert status == 0, errors  # a cell of its own
    (there / "runs" / "runs" / "measurements").rename(there / "elsewhere")
    status, _, errors = call("analyse", "folder=runs/runs")
    assert "was trained on other points than mydata:regression gives now" in errors
