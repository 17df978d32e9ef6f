"""One learning rate serves every width, parameterisation and alpha; features move as the parameterisation says."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from ridgescope.analysis.coordinates import Setting, coordinate_figure, coordinates, slopes
from ridgescope.models import CNN, MLP
from ridgescope.train.data import PreparedData, prepare_data
from ridgescope.train.errors import UserError
from ridgescope.train.optimisers import SGD, Adam

LADDER = {"parameterisations": ["ntk", "mup"], "alphas": [1e-2, 1.0, 1e2], "widths": [32, 128]}


@pytest.fixture(scope="module")
def data() -> PreparedData:
    return prepare_data("digits", train_size=40, pool_size=200, test_size=10, num_draws=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimiser", [SGD(learning_rate=0.1, momentum=0.9), Adam(learning_rate=0.5)], ids=["sgd", "adam"]
)
def test_one_learning_rate_serves_the_whole_ladder_and_dial(data: PreparedData, optimiser: SGD | Adam) -> None:
    table = coordinates(partial(MLP, depth=2, activation="gelu"), data, Setting(optimiser, 40, 2), **LADDER)
    assert len(table) == 2 * 3 * 2 * 2
    assert (table["loss"] < 1).all()
    found = slopes(table).set_index(["parameterisation", "alpha"])
    # f moves alike at every width: a factor 4 in width changes it by less than a factor 4^0.35 = 1.6
    assert (found["function"].abs() < 0.35).all()
    # lazy features: flat in mup, 1/sqrt(N) in ntk, up to what widths of 32 still lack
    assert abs(found.loc[("mup", 1e2), "features"]) < 0.2
    assert -0.65 < found.loc[("ntk", 1e2), "features"] < -0.25
    # and as 1/alpha
    moved = table[table["alpha"] > 0.5].groupby(["parameterisation", "alpha"])["features"].mean()
    assert moved["ntk", 1.0] / moved["ntk", 1e2] == pytest.approx(100, rel=0.2)


def test_a_rate_beyond_the_edge_shows(data: PreparedData) -> None:
    table = coordinates(
        partial(MLP, depth=2, activation="gelu"),
        data,
        Setting(SGD(learning_rate=30.0, momentum=0.0), 40, 1),
        parameterisations=["ntk"],
        alphas=[1e2],
        widths=[32, 64],
    )
    assert (slopes(table)["worst_loss"] > 1).all()


def test_slopes_are_those_of_power_laws() -> None:
    widths = np.array([8, 16, 64])
    table = pd.DataFrame({"parameterisation": "ntk", "alpha": 1.0, "width": widths, "seed": 0})
    table = table.assign(loss=[0.5, 0.9, 0.1], function=3.0, features=2.0 * widths**-0.5)
    found = slopes(table).iloc[0]
    assert found["worst_loss"] == 0.9
    assert found["function"] == pytest.approx(0, abs=1e-12)
    assert found["features"] == pytest.approx(-0.5, rel=1e-12)
    # a network that diverged makes no slope, and no loss is worse
    broken = slopes(table.assign(loss=[0.5, np.nan, 0.1], features=[1.0, np.nan, np.nan])).iloc[0]
    assert broken["worst_loss"] == np.inf


def test_convolutional_networks_are_checked_and_drawn(data: PreparedData) -> None:
    table = coordinates(
        partial(CNN, depth=2, activation="erf", strides=[2, 2]),
        data,
        Setting(SGD(learning_rate=0.1, momentum=0.0), 3, 1),
        parameterisations=["mup"],
        alphas=[1.0, 10.0],
        widths=[4, 8],
    )
    figure = coordinate_figure(table)
    assert [len(axes.get_lines()) > 0 for axes in figure.axes] == [True] * 3


def test_empty_ladders_are_refused(data: PreparedData) -> None:
    setting = Setting(SGD(learning_rate=0.1), 1, 1)
    with pytest.raises(UserError, match="widths, alphas and parameterisations must each name at least one"):
        coordinates(partial(MLP, depth=1), data, setting, **(LADDER | {"widths": []}))
    with pytest.raises(UserError, match="steps=0 and num_seeds=1 must be at least 1"):
        coordinates(partial(MLP, depth=1), data, Setting(SGD(learning_rate=0.1), 0, 1), **LADDER)
