"""Early stopping: a lazy network follows its kernel's flow, a rich one does not, and the acting ridge is an inverse."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from ridgescope.analysis.regression import full_kernel_ridge
from ridgescope.analysis.runs import load_cell
from ridgescope.analysis.stopping import best_stops, has_flow, stopping_rows
from ridgescope.models import empirical_ntk

TRAIN = (
    "data.train_size=16",
    "data.pool_size=120",
    "data.test_size=60",
    "data.target=binary",
    "data.label_noise=0.3",
    "model.depth=1",
    "ridges=[0]",
    "num_seeds=3",
    "num_draws=3",
    "stop=steps",
    "optimiser=sgd",
    "optimiser.momentum=0",
    "optimiser.learning_rate=0.05",
    "max_steps=300",
    "measure_per_decade=3",
)


@pytest.mark.slow
def test_a_sweep_with_trajectories_reports_flow_and_ridge(call: Callable, tmp_path) -> None:
    common = f"common='{' '.join(TRAIN)}'"
    lines = "alpha=10 model.width=32", "alpha=10 model.width=32 linearised=true", "alpha=0.05 model.width=32"
    sweeps = f"sweeps=[{','.join(repr(line) for line in lines)}]"
    status, _, err = call("validate", "name=stop", common, sweeps, "infinite_draws=8", "logging.wandb=disabled")
    assert status in (None, 0), err
    report = tmp_path / "runs" / "stop" / "report"
    table = pd.read_parquet(report / "stopping.parquet")
    networks = table[(table["who"] == "network") & (table["time"] > 0)]
    assert len(networks) == 3 * 3 * networks["step"].nunique()
    off = (
        (networks["network_test"] / networks["flow_test"] - 1)
        .abs()
        .groupby([networks["model"], networks["alpha"]])
        .max()
    )
    # linearised networks differ by the length of their steps alone
    assert off["linearised mlp", 10.0] < 0.02
    assert off["mlp", 0.05] > 3 * max(off["linearised mlp", 10.0], off["mlp", 10.0])
    infinite = table[table["who"] == "infinite"]
    ratio = infinite.groupby("step")["infinite_flow_test"].mean() / infinite.groupby("step")["theory_flow_test"].mean()
    assert ratio.to_numpy() == pytest.approx(1, abs=0.15)  # 16 samples, 8 draws
    verdicts = pd.read_parquet(report / "verdicts.parquet").query("scope == 'all'").set_index(["model", "claim"])
    assert verdicts.loc[("linearised mlp", "flow"), "verdict"] == "holds"
    assert verdicts.loc[("mlp, alpha 0.05", "flow"), "verdict"] != "holds"
    page = (report / "index.html").read_text()
    assert 'id="stopping"' in page
    assert len(list((report / "figures").glob("*stopping_P16.svg"))) == 3
    assert (tmp_path / "runs" / "stop" / "stopping").is_dir()
    best = best_stops(table, keys=("model", "alpha", "width", "P"))
    assert (best["stop_over_ridge"] > -0.3).all()

    cell = next(c for c in map(load_cell, sorted((tmp_path / "runs" / "stop" / "cells").iterdir())) if has_flow(c))
    data = cell.data()
    rows = stopping_rows(cell, data)
    one = rows[(rows["seed"] == 0) & (rows["acting_ridge"].notna())].iloc[-1]
    index = data.splits.train[int(one["draw"])]
    net = cell.network(data)
    gram = empirical_ntk(net, cell.initial_of(0), data.pool_inputs[index]) / net.kernel_scale
    fit = full_kernel_ridge(gram, data.pool_targets[index], float(one["acting_ridge"]))
    assert fit.train == pytest.approx(one["network_train"], rel=1e-4)
    assert math.isnan(rows.loc[rows["time"] == 0, "acting_ridge"].iloc[0])
    start = rows[rows["time"] == 0]
    np.testing.assert_allclose(start["flow_test"], float(data.test_targets.square().sum(1).mean()), rtol=1e-12)


@pytest.mark.slow
def test_a_linearised_network_is_measured_as_it_was_trained(call: Callable, tmp_path) -> None:
    """At small alpha the network itself at those parameters is something else."""
    settings = (
        "data.train_size=12 data.pool_size=60 data.test_size=40 data.target=binary model.depth=1 ridges=[1e-2] "
        "num_seeds=2 num_draws=2 alpha=0.1 linearised=true"
    )
    words = ("name=linear", f"common='{settings}'", "sweeps=['model.width=16']")
    status, _, err = call("validate", *words, "infinite_draws=2", "logging.wandb=disabled")
    assert status in (None, 0), err
    table = pd.read_parquet(tmp_path / "runs" / "linear" / "report" / "networks.parquet")
    assert set(table["model"]) == {"linearised mlp"}
    np.testing.assert_allclose(table["network_test"], table["krr_test"], rtol=1e-3)
    assert (table["kernel_movement"] == 0).all()
