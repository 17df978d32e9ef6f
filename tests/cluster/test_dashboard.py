"""The workspace is built and serialised without an account; sync knows what is not uploaded yet."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ridgescope.cluster import sync
from ridgescope.cluster.dashboard import serialised, workspace
from ridgescope.cluster.sync import offline_runs, upload
from ridgescope.train.errors import UserError


def panels(view: dict) -> dict[str, list[dict]]:  # type: ignore[type-arg]
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb-workspaces, about pydantic
def test_the_workspace_shows_kappa_risk_links_convergence_and_cost_of_one_experiment() -> None:
    pytest.importorskip("wandb_workspaces")
    view = serialised(workspace("ridgescope", "me", "validate_digits"))
    assert view["displayName"] == "Ridgescope: validate_digits"
    found = panels(view)
    charts = {
        name: (p["config"]["panelDefId"], p["config"]["fieldSettings"])
        for name, (p, *_) in found.items()
        if p["viewType"] == "Vega2"
    }
    assert charts == {
        "Effective ridge: predicted (x) against measured": (
            "wandb/scatter/v0",
            {"x": "predicted", "y": "measured"},
        ),
        "Risk against width": ("wandb/line/v0", {"x": "width", "y": "risk", "stroke": "curve"}),
        "The three links: relative deviation": (
            "wandb/line/v0",
            {"x": "width", "y": "deviation", "stroke": "curve"},
        ),
    }
    bars = next(p for p in found["Convergence"] if p["viewType"] == "Bar Chart")
    flags = {flag.removeprefix("summary_metrics.") for flag in bars["config"]["metrics"]}
    assert {"cell/converged", "cell/diverged", "cell/stagnated"} <= flags
    assert [p["config"]["xAxis"] for p in found["Convergence"] if p["viewType"] == "Run History Line Plot"] == [
        "trainer/global_step"
    ] * 2
    assert found["Cost"][0]["config"]["yAxis"] == "summary:cell/seconds"
    assert "validate_digits" in str(view["spec"]["section"]["runSets"][0]["filters"])


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., Path]:
    def make(cell: str, moment: str, kind: str = "offline-run", synced: bool = False) -> Path:
        run = tmp_path / "sweep" / "cells" / cell / "wandb" / f"{kind}-{moment}-sweep-{cell}"
        run.mkdir(parents=True)
        (run / f"run-sweep-{cell}.wandb").touch()
        if synced:
            (run / f"run-sweep-{cell}.wandb.synced").touch()
        return run

    return make


def test_sync_takes_offline_runs_that_are_not_uploaded_in_the_order_of_their_start(
    tmp_path: Path, runs: Callable[..., Path]
) -> None:
    third, first = runs("b", "20261201_120000"), runs("b", "20261201_100000")
    second = runs("a", "20261201_110000")
    runs("c", "20261201_090000", synced=True)
    lost = runs("d", "20261201_090000", kind="run")  # began online
    assert offline_runs(tmp_path / "sweep") == [first, second, third]
    assert set(offline_runs(tmp_path / "sweep", online=True)) == {lost, first, second, third}
    with pytest.raises(UserError, match="nowhere is no folder; give the experiment's"):
        offline_runs(tmp_path / "nowhere")


def test_sync_without_a_network_is_one_line_and_a_failed_upload_too(
    tmp_path: Path, runs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = runs("a", "20261201_110000"), []
    monkeypatch.setattr(sync, "why_offline", lambda: "no key")
    with pytest.raises(UserError, match=r"1 runs cannot be uploaded from here: no key; try where"):
        upload([run])

    def fails(words: list[str], check: bool) -> "subprocess.CompletedProcess[str]":
        calls.append(words[1:])
        return subprocess.CompletedProcess(words, 1)

    monkeypatch.setattr(sync, "why_offline", lambda: None)
    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(UserError, match="wandb sync did not upload everything; the same command goes on"):
        upload([run])
    assert calls == [["-m", "wandb", "sync", "--yes", "--include-online", str(run)]]
