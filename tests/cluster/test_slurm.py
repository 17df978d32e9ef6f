"""Sweeps on a real Slurm: two pretended nodes on loopback, arrays of at most four tasks."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

SIZE = "data=digits data.pool_size=100 data.test_size=50 ridges=[1e-1] num_seeds=1 num_draws=2"
CLUSTER = ("cluster.cpus=1", "cluster.time=5", "cluster.mem=1500M", "cluster.analysis_mem=1500M")
CLUSTER += ("cluster.analysis_time=5",)
# some seconds of gradient descent that never converges
LONG = "optimiser=sgd model.width=64 data.train_size=100 tolerance=1e-300 max_steps=1000"


def words(name: str, sweep: str, *cluster: str) -> tuple[str, ...]:
    settings = (f"name={name}", f"sweeps=['{sweep}']", f"common='{SIZE}'", "infinite_draws=4")
    return ("submit", *settings, *CLUSTER, "cluster.cells_per_job=1", *cluster)


def accounts(job: int) -> dict[str, str]:
    """State by array index; sacct lags by a second or two."""
    done = subprocess.run(
        ["sacct", "-nPX", "--format=JobID,State", f"--jobs={job}"], capture_output=True, text=True, check=True
    )
    pairs = (line.split("|") for line in done.stdout.splitlines())
    return {name.partition("_")[2]: state.split()[0] for name, state in pairs}


def queue(job: int) -> str:
    words = ["squeue", "--noheader", f"--jobs={job}", "--format=%N"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def wait_until(true: Callable[[], bool], what: str, seconds: float = 150) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.5)


def read(path: Path) -> dict:  # type: ignore[type-arg]
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_a_detached_sweep_with_a_cell_that_fails(ridgescope: Callable[..., str], tmp_path: Path) -> None:
    """More tasks than an array may have; one cell cannot work; then it can, and it alone is run again."""
    line = words("sweep", "model.width=16,24,32,40,48 data.train_size=10")
    experiment = tmp_path / "runs" / "sweep"
    # the third cell's folder cannot be made while a file has its name
    ridgescope("train", "name=sweep", *SIZE.split(), "model.width=32", "data.train_size=10", "output=other")
    blocked = next((tmp_path / "other" / "sweep" / "cells").iterdir()).name
    (experiment / "cells").mkdir(parents=True)
    (experiment / "cells" / blocked).write_text("in the way")
    out = ridgescope(*line)
    assert "(4 tasks), " in out
    assert "(1 tasks), then analysis" in out
    first = read(experiment / "submissions" / "001" / "submission.json")
    wait_until(lambda: "COMPLETED" in accounts(first["analysis"]).values(), "the analysis of the first submission")
    ids = [job["id"] for job in first["arrays"]]
    assert accounts(ids[0]) == {"0": "COMPLETED", "1": "COMPLETED", "2": "FAILED", "3": "COMPLETED"}
    assert accounts(ids[1]) == {"0": "COMPLETED"}
    # the analysis ran on what is there, after the cells, and said what is not
    assert (experiment / "report" / "index.html").is_file()
    log = next((experiment / "submissions" / "001" / "logs").glob("analysis-*.log")).read_text()
    assert f"failed  {blocked}" in log
    state = ridgescope("status", "folder=runs/sweep")
    assert state.startswith("sweep: 5 cells: 4 done, 1 failed\n")
    assert f"cannot write runs/sweep/cells/{blocked} (File exists)" in state
    before = {path: path.stat().st_mtime_ns for path in (experiment / "cells").glob("*/*")}
    (experiment / "cells" / blocked).unlink()
    ridgescope("status", "folder=runs/sweep", "resubmit=true")
    second = read(experiment / "submissions" / "002" / "submission.json")
    assert [job["count"] for job in second["arrays"]] == [1]
    wait_until(lambda: (experiment / "cells" / blocked / "done.json").is_file(), "the cell that failed")
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert ridgescope("status", "folder=runs/sweep").startswith("sweep: 5 cells: 5 done\n")


def test_cancelled_then_requeued_it_ends_as_if_undisturbed(ridgescope: Callable[..., str], tmp_path: Path) -> None:
    """scancel: the cell failed and stays so until it is submitted again. SIGUSR1, as before the time limit: it is
    requeued by itself. At the end the weights have the very bits of a run in one go."""
    ridgescope(*words("long", LONG))
    experiment = tmp_path / "runs" / "long"
    job = read(experiment / "submissions" / "001" / "submission.json")["arrays"][0]["id"]

    def trains() -> bool:
        return any(len(path.read_text().splitlines()) > 5 for path in experiment.glob("cells/*/metrics.csv"))

    wait_until(trains, "the first attempt")
    assert "1 running" in ridgescope("status", "folder=runs/long")
    subprocess.run(["scancel", str(job)], check=True)
    wait_until(lambda: accounts(job) == {"0": "CANCELLED"} and not queue(job), "the end of the cancelled job")
    state = ridgescope("status", "folder=runs/long")
    assert "1 failed" in state
    assert ": cancelled; last words of" in state
    ridgescope(*words("long", LONG))
    submission = experiment / "submissions" / "002"
    job = read(submission / "submission.json")["arrays"][0]["id"]
    log = submission / "logs" / f"{job}_0.log"
    wait_until(lambda: log.is_file() and "training" in log.read_text(), "the second attempt")
    time.sleep(2)
    subprocess.run(["scancel", "--batch", "--signal=USR1", f"{job}_0"], check=True)
    wait_until(lambda: "requeueing" in log.read_text(), "the requeue")
    assert not list(experiment.glob("cells/*/done.json"))
    wait_until(lambda: accounts(job) == {"0": "COMPLETED"}, "the requeued job")
    ridgescope("train", "name=long", "output=undisturbed", *SIZE.split(), *LONG.split())
    (cell,) = experiment.glob("cells/*")
    undisturbed = tmp_path / "undisturbed" / "long" / "cells" / cell.name
    for name in ("initial.safetensors", "program-000.safetensors", "program-000.json"):
        assert (cell / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_a_lost_node_costs_nothing_but_time(ridgescope: Callable[..., str], tmp_path: Path) -> None:
    ridgescope(*words("lost", LONG))
    experiment = tmp_path / "runs" / "lost"
    job = read(experiment / "submissions" / "001" / "submission.json")["arrays"][0]["id"]
    log = experiment / "submissions" / "001" / "logs" / f"{job}_0.log"
    wait_until(lambda: log.is_file() and "training" in log.read_text(), "the first attempt")
    node = queue(job)
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
    try:
        wait_until(lambda: accounts(job) == {"0": "COMPLETED"}, "the job on another node")
    finally:
        # it may be back already, by itself
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True)
    assert log.read_text().count("training") == 2
    assert ridgescope("status", "folder=runs/lost").startswith("lost: 1 cells: 1 done\n")
