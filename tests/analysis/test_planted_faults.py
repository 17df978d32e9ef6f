"""Planted faults, on networks that were really trained: each turns its verdict and names the right link.

Copies among the inputs are planted in test_audit.py: they need no training.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from ridgescope.analysis.audit_main import network_identity
from ridgescope.analysis.audit_networks import Points, audit_network
from ridgescope.analysis.claims import packaged_claims
from ridgescope.analysis.faults import network_findings
from ridgescope.analysis.runs import load_cell
from ridgescope.analysis.verdict import evaluate
from ridgescope.models import MLP
from ridgescope.train.cell import train_cell
from ridgescope.train.data import PreparedData, prepare_data
from ridgescope.train.optimisers import SGD, KernelLBFGS

TOLD = 1e-2  # the ridge that every network is said to have
ALPHA = 20.0


def digits() -> PreparedData:
    return prepare_data("digits", train_size=60, pool_size=300, test_size=500, num_draws=4, target="parity")


def audited(folder: Path, data: PreparedData, truth: PreparedData, **changes: Any) -> tuple[set[str], list[str]]:
    """Train four networks on ``data``, audit them as if trained on ``truth`` with ridge TOLD: verdicts and links."""
    settings: dict[str, Any] = {
        "config": {"data": {"seed": 0}, "num_seeds": 4, "seed": 0, "alpha": ALPHA},
        "data": data,
        "factory": partial(MLP, width=64, depth=1, activation="erf"),
        "optimiser": KernelLBFGS(),
        "ridges": [TOLD],
        "num_seeds": 4,
        "design": "paired",
        "seed": 0,
        "alpha": ALPHA,
        "batch_size": None,
        "max_steps": 300,
        "tolerance": 1e-8,
        "dtype": torch.float64,
        "accelerator": "cpu",
        "memory": 10**9,
    }
    train_cell(folder, **(settings | changes))
    cell = load_cell(folder)
    network = MLP((1, 8, 8), 1, width=64, depth=1, activation="erf", generator=torch.Generator().manual_seed(0))
    rows = []
    for member, record in enumerate(cell.members):
        index = truth.splits.train[record["draw"]]
        points = Points(truth.pool_inputs[index], truth.pool_targets[index], truth.test_inputs, truth.test_targets)
        row = audit_network(
            network, cell.final_of(member), points, ridge=TOLD, initial=cell.initial_of(record["seed"]), alpha=ALPHA
        )
        rows.append(network_identity("mlp", "digits", record["seed"], record["draw"]) | row)
    table = pd.DataFrame(rows)
    verdicts = evaluate(table, packaged_claims("audit_networks"))["verdict"]
    return set(verdicts), [finding.link for finding in network_findings(table)]


@pytest.mark.slow
def test_a_healthy_network_holds_and_acts_like_what_it_was_told(tmp_path: Path) -> None:
    assert audited(tmp_path / "cell", digits(), digits()) == ({"holds"}, [])


@pytest.mark.slow
def test_a_wrong_ridge_is_named(tmp_path: Path) -> None:
    verdicts, links = audited(tmp_path / "cell", digits(), digits(), ridges=[2 * TOLD])
    assert "fails" in verdicts
    assert links == ["ridge of training"]


@pytest.mark.slow
def test_training_that_stopped_early_is_named(tmp_path: Path) -> None:
    stopped = {"optimiser": SGD(learning_rate=0.2, momentum=0.0), "ridges": [1e-6], "max_steps": 40}
    verdicts, links = audited(tmp_path / "cell", digits(), digits(), **stopped)
    assert "fails" in verdicts
    assert links == ["length of training"]


@pytest.mark.slow
def test_hidden_noise_on_the_labels_is_named(tmp_path: Path) -> None:
    truth = digits()
    generator = torch.Generator().manual_seed(1)
    noise = 0.7 * torch.randn(truth.pool_targets.shape, generator=generator, dtype=torch.float64)
    verdicts, links = audited(tmp_path / "cell", replace(truth, pool_targets=truth.pool_targets + noise), truth)
    assert "fails" in verdicts
    assert links == ["labels of training"]
