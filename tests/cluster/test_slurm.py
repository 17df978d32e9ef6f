"""Sweeps on a real Slurm: two pretended nodes on loopback, arrays of at most two tasks."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ridgescope.train.config import cell_name, checked, register
from ridgescope.train.sweep import compose_cells

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.xdist_group("slurm"),  # one after the other: they share its two nodes
    pytest.mark.usefixtures("slurm"),
]

SIZE = "data=digits data.pool_size=100 data.test_size=50 ridges=[1e-1] num_seeds=1 num_draws=2"
CLUSTER = ("cluster.cpus=1", "cluster.time=10", "cluster.mem=1500M", "cluster.analysis_mem=1500M")
CLUSTER += ("cluster.analysis_time=10",)
# gradient descent that never converges, and waits where the test tells it to
PACED = "optimiser=sgd optimiser._target_=paced.PacedSGD data.train_size=20 tolerance=1e-300 max_steps=80"


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


def over(job: int) -> bool:
    """Whether a job has ended, well or not."""
    states = set(accounts(job).values())
    return bool(states) and not states & {"PENDING", "RUNNING", "REQUEUED"} and not queue(job)


def queue(job: int, column: str = "%T") -> str:
    """What squeue says of a job that waits or runs: its state, or with %N its node."""
    words = ["squeue", "--noheader", f"--jobs={job}", f"--format={column}"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def wait_until(true: Callable[[], bool], what: str, seconds: float = 600) -> None:
    """The limit is for a cluster that hangs: nothing here takes a tenth of it on a quiet machine."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.3)


def read(path: Path) -> dict:  # type: ignore[type-arg]
    return json.loads(path.read_text())  # type: ignore[no-any-return]


@pytest.fixture
def hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says before which step the jobs of this test wait."""
    monkeypatch.setenv("HOLD", str(tmp_path / "hold"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in a job with one CPU
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    return tmp_path / "hold"


@pytest.fixture(autouse=True)
def _nothing_is_left_running(tmp_path: Path) -> Iterator[None]:
    yield
    for path in tmp_path.glob("runs/*/submissions/*/submission.json"):
        made = read(path)
        jobs = [str(job["id"]) for job in made["arrays"]] + [str(made["analysis"])]
        subprocess.run(["scancel", *jobs], capture_output=True)


def begun(experiment: Path, restart: int) -> bool:
    """Whether a cell has metrics of its ``restart``-th continuation: that process trains."""
    for path in experiment.glob("cells/*/metrics.csv"):
        with path.open() as handle:
            if any(row["restart"] == str(restart) for row in csv.DictReader(handle)):
                return True
    return False


def test_a_detached_sweep_with_a_cell_that_fails(ridgescope: Callable[..., str], tmp_path: Path) -> None:
    """More tasks than an array may have; one cell cannot work; then it can, and it alone is run again."""
    sweep = "model.width=16,24,32 data.train_size=10"
    line = words("sweep", sweep)
    experiment = tmp_path / "runs" / "sweep"
    # the second cell's folder cannot be made while a file has its name
    register()
    blocked = cell_name(checked(compose_cells([*SIZE.split(), *sweep.split()])[1]))
    (experiment / "cells").mkdir(parents=True)
    (experiment / "cells" / blocked).write_text("in the way")
    out = ridgescope(*line)
    assert "(2 tasks), " in out
    assert "(1 tasks), then analysis" in out
    first = read(experiment / "submissions" / "001" / "submission.json")
    wait_until(lambda: over(first["analysis"]), "the analysis of the first submission")
    assert accounts(first["analysis"]) == {"": "COMPLETED"}
    ids = [job["id"] for job in first["arrays"]]
    assert accounts(ids[0]) == {"0": "COMPLETED", "1": "FAILED"}
    assert accounts(ids[1]) == {"0": "COMPLETED"}
    # the analysis ran on what is there, after the cells, and said what is not
    assert (experiment / "report" / "index.html").is_file()
    log = next((experiment / "submissions" / "001" / "logs").glob("analysis-*.log")).read_text()
    assert f"failed  {blocked}" in log
    state = ridgescope("status", "folder=runs/sweep")
    assert state.startswith("sweep: 3 cells: 2 done, 1 failed\n")
    assert f"cannot write runs/sweep/cells/{blocked} (File exists)" in state
    before = {path: path.stat().st_mtime_ns for path in (experiment / "cells").glob("*/*")}
    (experiment / "cells" / blocked).unlink()
    ridgescope("status", "folder=runs/sweep", "resubmit=true")
    second = read(experiment / "submissions" / "002" / "submission.json")
    assert [job["count"] for job in second["arrays"]] == [1]
    wait_until(lambda: (experiment / "cells" / blocked / "done.json").is_file(), "the cell that failed")
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert ridgescope("status", "folder=runs/sweep").startswith("sweep: 3 cells: 3 done\n")


def test_cancelled_then_requeued_it_ends_as_if_undisturbed(
    ridgescope: Callable[..., str], hold: Path, tmp_path: Path
) -> None:
    """scancel: the cell failed and stays so until it is submitted again. SIGUSR1, as before the time limit: it is
    requeued by itself. At the end the weights have the very bits of a run in one go."""
    hold.write_text("25")
    ridgescope(*words("long", PACED))
    experiment = tmp_path / "runs" / "long"
    job = read(experiment / "submissions" / "001" / "submission.json")["arrays"][0]["id"]
    wait_until(lambda: begun(experiment, 0), "the first attempt")
    assert "1 running" in ridgescope("status", "folder=runs/long")
    subprocess.run(["scancel", str(job)], check=True)
    wait_until(lambda: accounts(job) == {"0": "CANCELLED"} and not queue(job), "the end of the cancelled job")
    state = ridgescope("status", "folder=runs/long")
    assert "1 failed" in state
    assert ": cancelled; last words of" in state
    hold.write_text("55")
    ridgescope(*words("long", PACED))
    submission = experiment / "submissions" / "002"
    job = read(submission / "submission.json")["arrays"][0]["id"]
    log = submission / "logs" / f"{job}_0.log"
    wait_until(lambda: begun(experiment, 1), "the second attempt")
    subprocess.run(["scancel", "--batch", "--signal=USR1", f"{job}_0"], check=True)
    wait_until(lambda: "requeueing" in log.read_text(), "the requeue")
    hold.unlink()
    assert not list(experiment.glob("cells/*/done.json"))
    ridgescope("train", "name=long", "output=undisturbed", *SIZE.split(), *PACED.split())
    wait_until(lambda: over(job), "the requeued job")
    assert accounts(job) == {"0": "COMPLETED"}
    assert begun(experiment, 2)
    (cell,) = experiment.glob("cells/*")
    undisturbed = tmp_path / "undisturbed" / "long" / "cells" / cell.name
    for name in ("initial.safetensors", "program-000.safetensors", "program-000.json"):
        assert (cell / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_a_lost_node_costs_nothing_but_time(ridgescope: Callable[..., str], hold: Path, tmp_path: Path) -> None:
    hold.write_text("25")
    ridgescope(*words("lost", PACED))
    experiment = tmp_path / "runs" / "lost"
    job = read(experiment / "submissions" / "001" / "submission.json")["arrays"][0]["id"]
    log = experiment / "submissions" / "001" / "logs" / f"{job}_0.log"
    wait_until(lambda: begun(experiment, 0), "the first attempt")
    node = queue(job, "%N")
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
    hold.unlink()
    try:
        wait_until(lambda: over(job), "the job on another node")
    finally:
        # it may be back already, by itself
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True)
    assert accounts(job) == {"0": "COMPLETED"}
    assert log.read_text().count("training") == 2
    assert ridgescope("status", "folder=runs/lost").startswith("lost: 1 cells: 1 done\n")


def test_two_nodes_compute_one_kernel_under_srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit that of one process. Two strangers in one folder would have refused each other."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # the pretended nodes have no address of their own
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = Path(__file__).parents[2] / "benchmarks" / "kernel_memory.py"
    line = [sys.executable, str(script), "--inputs", "400", "--width", "32", "--memory", "3MB", "--compute"]
    two = ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--mem=1500M", "--time=10"]
    for words, processes in (([*line, str(tmp_path / "alone")], 1), ([*two, *line, str(tmp_path / "shared")], 2)):
        done = subprocess.run(words, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count('"seconds"') == processes
    alone, shared = (tmp_path / name / "kernel.safetensors" for name in ("alone", "shared"))
    assert alone.read_bytes() == shared.read_bytes()
