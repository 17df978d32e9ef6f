"""What is measured of a network where its kernel carries the ridge, and where it does not."""

import math
from pathlib import Path

import pytest
import torch

from ridgescope.analysis.infinite import pool_kernels
from ridgescope.analysis.measure import measure_group
from ridgescope.analysis.runs import Cell
from ridgescope.models import MLP, empirical_ntk
from ridgescope.train.data import PreparedData, Splits

MODEL = {"_target_": "ridgescope.models.MLP", "width": 1, "depth": 1, "activation": "erf"}


@pytest.fixture
def measured():
    """Rows of one network with 3 outputs on 12 points for two ridges, one of which is far below rounding."""
    generator = torch.Generator().manual_seed(0)
    ridges = [1e-2, 1e-17]
    # 8 + 3 parameters feel 12 points times 3 outputs: a singular kernel
    model = MLP((4,), 3, width=1, depth=1, activation="erf", generator=generator)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    moved = {name: value + 0.1 for name, value in weights.items()}
    inputs, targets = (torch.randn(20, size, generator=generator, dtype=torch.float64) for size in (4, 3))
    labels, index = torch.zeros(20, dtype=torch.long), torch.arange(20)
    splits = Splits(index, index[12:], index[None, :12])
    data = PreparedData(inputs, targets, labels, inputs[12:], targets[12:], labels[12:], splits, 3, "")
    record = {"seed": 0, "draw": 0, "status": "converged", "steps": 3, "optimality_gap": 1e-9}
    config = {"alpha": 1.0, "data": {"name": "made up", "train_size": 12}, "model": MODEL, "ridges": ridges, "seed": 0}
    config |= {"num_seeds": 1}
    members = [record | {"member": i, "ridge": ridge} for i, ridge in enumerate(ridges)]
    stacked = [{name: torch.stack([value] * n) for name, value in w.items()} for w, n in ((weights, 1), (moved, 2))]
    cell = Cell(Path("cell"), config, members, *stacked)
    (rows,) = measure_group([cell], [data], pool_kernels(model, data), lambda: None)
    return model, inputs[:12], targets[:12], rows


def test_a_kernel_that_carries_the_ridge_is_measured(measured) -> None:
    model, x, y, (carried, _) = measured
    gram = empirical_ntk(model, None, x) / model.kernel_scale
    dual = torch.linalg.solve(gram + 12 * 1e-2 * torch.eye(36, dtype=torch.float64), y.T.flatten())
    residual = gram @ dual - y.T.flatten()
    assert carried.row["krr_train"] == pytest.approx(float(residual.square().sum()) / 12, rel=1e-9)
    assert carried.row["undetermined"] == ""
    assert math.isfinite(carried.row["entk_condition"])


def test_a_kernel_that_does_not_gives_its_reason_and_no_number(measured) -> None:
    *_, (_, refused) = measured
    assert "kernel at initialisation: the kernel cannot carry ridge=1e-17" in refused.row["undetermined"]
    assert "kernel after training: the kernel cannot carry" in refused.row["undetermined"]
    assert not {"krr_test", "kappa_entk", "krr_final_test", "kappa_final"} & set(refused.row)
    assert refused.kernel.isnan().all()
    assert math.isfinite(refused.row["network_test"])  # the network itself was measured
