"""A submission without Slurm, for what needs none, and the real thing where `.ci/local_slurm up` was run."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from ridgescope.cluster.config import ClusterConfig
from ridgescope.cluster.submission import PlannedCell, Submission, create
from ridgescope.train.files import write_json


@pytest.fixture
def submission(tmp_path: Path) -> Callable[..., Submission]:
    """Make a submission of five cells a to e, two to a task, in the experiment `sweep`."""

    def make(*names: str, **cluster: object) -> Submission:
        settings = {"cluster": asdict(ClusterConfig()) | {"cells_per_job": 2} | cluster, "analysis": []}
        cells = [PlannedCell(name, [], {}, 10.0) for name in names or "abcde"]
        return create(tmp_path / "sweep", cells, settings)

    return make


@pytest.fixture
def finish(tmp_path: Path) -> Callable[..., None]:
    """Leave behind what a cell leaves: done, or begun, or failed with a message."""

    def leave(name: str, how: str = "done") -> None:
        cell = tmp_path / "sweep" / "cells" / name
        cell.mkdir(parents=True, exist_ok=True)
        if how == "done":
            write_json(cell / "done.json", {"seconds": 5.0})
        elif how != "begun":
            write_json(cell / "failed.json", {"error": how})

    return leave


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a shell script in front of the PATH under a command's name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name: str, body: str) -> None:
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)

    return make


@pytest.fixture(scope="session")
def slurm() -> None:
    """Skips where no Slurm answers."""
    try:
        done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        pytest.skip("no Slurm here: .ci/local_slurm up; eval $(.ci/local_slurm env)")
    if done.returncode:
        pytest.skip("Slurm does not answer: .ci/local_slurm up; eval $(.ci/local_slurm env)")


@pytest.fixture
def ridgescope(tmp_path: Path) -> Callable[..., str]:
    """A command in a folder of its own; its stdout."""

    def run(*words: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ridgescope", *words], capture_output=True, text=True, cwd=tmp_path, timeout=600
        )
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    return run
