"""One sweep, run three ways: in process, by Hydra's launchers, and (test_slurm) submitted. The results are the same."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ridgescope.train.config import register
from ridgescope.train.main import run_cell
from ridgescope.train.sweep import compose_cells

SWEEP = ("data=digits", "data.pool_size=100", "data.test_size=50", "data.train_size=10", "ridges=[1e-1]")
SWEEP += ("num_seeds=1", "num_draws=2", "model.width=4,6", "name=sweep")


def results(folder: Path) -> dict[str, bytes]:
    names = ("initial.safetensors", "program-000.safetensors", "program-000.json", "splits.json")
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for name in names for path in folder.glob(f"*/{name}")}


@pytest.fixture
def in_process(tmp_path: Path) -> dict[str, bytes]:
    register()
    for cell in compose_cells([*SWEEP, f"output={tmp_path / 'here'}"]):
        run_cell(cell)
    found = results(tmp_path / "here" / "sweep" / "cells")
    assert len(found) == 8
    return found


@pytest.mark.slow
def test_joblib(in_process: dict[str, bytes], ridgescope: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    ridgescope("train", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *SWEEP)
    assert results(tmp_path / "runs" / "sweep" / "cells") == in_process


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.xdist_group("slurm")
@pytest.mark.usefixtures("slurm")
def test_submitit_on_slurm(in_process: dict[str, bytes], ridgescope: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    job = ("hydra.launcher.timeout_min=10", "hydra.launcher.mem_gb=2", "hydra.launcher.cpus_per_task=1")
    ridgescope("train", "-m", "hydra/launcher=submitit_slurm", *job, *SWEEP)
    assert results(tmp_path / "runs" / "sweep" / "cells") == in_process
    assert list(tmp_path.glob("runs/sweep/.submitit/*/*_log.out"))
    assert not (tmp_path / "multirun.yaml").exists()  # Hydra's own files lie in the sweep's folder
