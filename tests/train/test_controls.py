"""Linearised networks, gradient flow, one pass over fresh samples, and measurements along the way."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ridgescope.models import MLP, empirical_ntk, linearised_predict
from ridgescope.theory import kernel_flow
from ridgescope.train.cell import train_cell
from ridgescope.train.data import PreparedData, prepare_data
from ridgescope.train.ensemble import hash_seed
from ridgescope.train.errors import UserError
from ridgescope.train.optimisers import SGD, Adam, KernelLBFGS
from ridgescope.train.trajectory import log_spaced_steps

WIDTH = 64


@pytest.fixture(scope="module")
def data() -> PreparedData:
    return prepare_data("digits", train_size=20, pool_size=200, test_size=100, num_draws=1, target="parity")


def train(folder: Path, data: PreparedData, **changes: Any) -> tuple[list[dict[str, Any]], pd.DataFrame | None]:
    """The members' records and the trajectory."""
    settings: dict[str, Any] = {
        "config": {"data": {"seed": 0}},
        "data": data,
        "factory": partial(MLP, width=WIDTH, depth=2, activation="erf"),
        "optimiser": KernelLBFGS(),
        "ridges": [1e-2],
        "num_seeds": 1,
        "design": "paired",
        "seed": 0,
        "alpha": 1.0,
        "batch_size": None,
        "max_steps": 300,
        "tolerance": 1e-8,
        "dtype": torch.float64,
        "accelerator": "cpu",
        "memory": 10**9,
    }
    train_cell(folder, **(settings | changes))
    members = [m for path in sorted(folder.glob("program-*.json")) for m in json.loads(path.read_text())]
    table = folder / "trajectory.parquet"
    return members, pd.read_parquet(table) if table.exists() else None


def kernel_and_network(data: PreparedData, **network: Any) -> tuple[torch.Tensor, MLP]:
    generator = torch.Generator().manual_seed(hash_seed(0, "init"))
    net = MLP(data.in_shape, data.num_outputs, width=WIDTH, depth=2, activation="erf", generator=generator, **network)
    return empirical_ntk(net, None, data.pool_inputs[data.splits.train[0]]) / net.kernel_scale, net


def risk(data: PreparedData, net: MLP, dual: torch.Tensor) -> float:
    x = data.pool_inputs[data.splits.train[0]]
    test = linearised_predict(net, None, x, dual / net.kernel_scale, data.test_inputs)
    return float((test - data.test_targets).square().sum(1).mean())


@pytest.mark.parametrize(
    ("optimiser", "alpha"),
    [(KernelLBFGS(), 0.1), (KernelLBFGS(), 10.0), (SGD(momentum=0.97), 0.1)],
    ids=["lbfgs-rich", "lbfgs-lazy", "sgd-rich"],
)
def test_a_linearised_network_is_kernel_regression_at_any_alpha(
    tmp_path: Path, data: PreparedData, optimiser: Any, alpha: float
) -> None:
    members, _ = train(
        tmp_path / "cell", data, linearised=True, alpha=alpha, optimiser=optimiser, ridges=[3e-2], max_steps=3000
    )
    gram, net = kernel_and_network(data)
    dual = torch.linalg.solve(
        gram + 20 * 3e-2 * torch.eye(20, dtype=gram.dtype), data.pool_targets[data.splits.train[0]]
    )
    assert members[0]["status"] == "converged"
    assert members[0]["test_risk"] == pytest.approx(risk(data, net, dual), rel=1e-3)
    # the network itself is something else where it is rich
    own, _ = train(tmp_path / "own", data, alpha=alpha, ridges=[3e-2], max_steps=3000)
    assert (abs(own[0]["test_risk"] / members[0]["test_risk"] - 1) > 0.01) == (alpha < 1)


@pytest.mark.slow
@pytest.mark.parametrize(("parameterisation", "momentum"), [("ntk", 0.0), ("mup", 0.5)])
def test_small_steps_follow_the_theorys_gradient_flow(
    tmp_path: Path, data: PreparedData, parameterisation: str, momentum: float
) -> None:
    rate = 2e-3 * (1 - momentum)
    members, table = train(
        tmp_path,
        data,
        factory=partial(MLP, width=WIDTH, depth=2, activation="erf", parameterisation=parameterisation),
        optimiser=SGD(learning_rate=rate, momentum=momentum),
        linearised=True,
        ridges=[0.0],
        alpha=10.0,
        stop="steps",
        max_steps=1000,
        measure_per_decade=3,
    )
    assert table is not None
    assert members[0]["status"] == "stopped"
    assert table["step"].tolist() == log_spaced_steps(1000, 3)
    gram, net = kernel_and_network(data, parameterisation=parameterisation)
    flow = kernel_flow(gram, data.pool_targets[data.splits.train[0]])
    late = table[table["step"] >= (0 if momentum == 0 else 50)]  # momentum takes 1/(1 - m) steps to build up
    expected = pd.DataFrame(
        {"train_risk": flow.train(t), "test_risk": risk(data, net, flow.dual(t))} for t in late["time"]
    )
    np.testing.assert_allclose(late["train_risk"], expected["train_risk"], rtol=2e-2)
    np.testing.assert_allclose(late["test_risk"], expected["test_risk"], rtol=2e-2)
    assert expected["train_risk"].iloc[-1] < 0.5 * expected["train_risk"].iloc[0]
    assert members[0]["test_risk"] == table["test_risk"].iloc[-1]


def test_kernels_move_and_align_where_the_network_is_rich(tmp_path: Path, data: PreparedData) -> None:
    moved = {}
    for alpha in (0.1, 30.0):
        _, table = train(tmp_path / str(alpha), data, alpha=alpha, measure_per_decade=4, measure_kernels=True)
        assert table is not None
        assert table["time"].isna().all()  # a line search makes no flow
        first, last = table.iloc[0], table.iloc[-1]
        assert first[["ntk_movement", "ck_movement"]].tolist() == [0, 0]
        assert ((table[["ntk_alignment", "ck_alignment"]] > 0) & (table[["ntk_alignment", "ck_alignment"]] < 1)).all(
            axis=None
        )
        moved[alpha] = last["ntk_movement"], last["ck_movement"], last["ntk_alignment"] - first["ntk_alignment"]
    assert moved[0.1][0] > 20 * moved[30.0][0] > 0
    assert moved[0.1][1] > 20 * moved[30.0][1] > 0
    assert moved[0.1][2] > 0.05 > abs(moved[30.0][2])
    _, linear = train(tmp_path / "linear", data, linearised=True, measure_per_decade=1, measure_kernels=True)
    assert linear is not None
    assert (linear["ntk_movement"] == 0).all()


def test_online_training_sees_each_sample_once(tmp_path: Path) -> None:
    data = prepare_data("digits", train_size=600, pool_size=900, test_size=300, num_draws=1, target="parity")
    members, table = train(
        tmp_path,
        data,
        online=True,
        batch_size=10,
        optimiser=SGD(learning_rate=0.1, momentum=0.0),
        ridges=[0.0],
        max_steps=10**6,
        measure_per_decade=2,
    )
    assert table is not None
    assert (members[0]["steps"], members[0]["status"]) == (60, "stopped")
    assert table["step"].iloc[-1] == 60
    # samples that were seen once are hardly better known than those that were not
    assert members[0]["test_risk"] < 0.6 * table["test_risk"].iloc[0]
    assert members[0]["test_risk"] == pytest.approx(members[0]["train_risk"], rel=0.25)
    with pytest.raises(UserError, match="online=true takes a fresh batch at every step; give batch_size"):
        train(tmp_path / "full", data, online=True)


def test_a_trajectory_survives_an_interruption(
    tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "optimiser": Adam(), "measure_per_decade": 5, "measure_kernels": True, "max_steps": 40, "num_seeds": 2,
    }  # fmt: skip
    _, whole = train(tmp_path / "whole", data, **settings)
    with monkeypatch.context() as patch:
        patch.setattr("ridgescope.train.programs.save_program", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path / "torn", data, checkpoint_every=0.0, **settings)
    _, torn = train(tmp_path / "torn", data, **settings)
    assert whole is not None
    assert torn is not None
    pd.testing.assert_frame_equal(whole, torn, check_exact=True)


def test_unknown_ways_to_stop_and_measure_are_refused(tmp_path: Path, data: PreparedData) -> None:
    with pytest.raises(UserError, match="stop='early' is unknown; choose optimum or steps"):
        train(tmp_path / "a", data, stop="early")
    with pytest.raises(UserError, match="measure_per_decade=-1 must be at least 0"):
        train(tmp_path / "b", data, measure_per_decade=-1)
