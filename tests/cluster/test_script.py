"""The batch script, run by bash with a stand-in for the worker: signals, requeueing, exit statuses."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from ridgescope.cluster.config import ClusterConfig
from ridgescope.cluster.script import analysis_script, array_script, check_settings
from ridgescope.train.errors import UserError

Tool = Callable[[str, str], None]


def script(tmp_path: Path, **changes: object) -> Path:
    """With a worker that writes its arguments and then does as the file `body` says."""
    worker = tmp_path / "python"
    worker.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\n. {tmp_path}/body\n')
    worker.chmod(0o755)
    cluster = asdict(ClusterConfig(python=str(worker), setup=["export SITE=here"])) | changes
    path = tmp_path / "array.sh"
    path.write_text(array_script("sweep", tmp_path / "sweep" / "submissions" / "001", cluster))
    return path


def start(path: Path, restarts: int = 0) -> "subprocess.Popen[str]":
    place = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    return subprocess.Popen(["bash", str(path), "10"], env=os.environ | place, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path, lines: int = 1) -> None:
    end = time.monotonic() + 20
    while not (path.exists() and len(path.read_text().splitlines()) >= lines):
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.02)


CATCHES = "trap 'exit 75' USR1 TERM; for i in {1..300}; do sleep 0.1; done"


@pytest.mark.parametrize(("body", "status"), [("exit 0", 0), ("exit 1", 1), ("kill -9 $$", 137)])
def test_the_status_of_the_worker_is_the_status_of_the_task(body: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "body").write_text(body)
    job = start(script(tmp_path))
    job.communicate(timeout=20)
    assert job.returncode == status
    folder = tmp_path / "sweep" / "submissions" / "001"
    assert (tmp_path / "calls").read_text() == f"-m ridgescope.cluster.worker {folder} 12 0\n"


@pytest.mark.parametrize("body", [CATCHES, "for i in {1..300}; do sleep 0.1; done"], ids=["listening", "importing"])
def test_before_the_time_limit_the_task_requeues_itself(body: str, tmp_path: Path, tool: Tool) -> None:
    tool("scontrol", f"echo $@ > {tmp_path}/requeued; exit 1")  # as if it were not allowed
    (tmp_path / "body").write_text(body)
    job = start(script(tmp_path, at_once=2))
    wait_for(tmp_path / "calls", 2)
    time.sleep(0.3)
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=20)
    assert job.returncode == 75
    assert (tmp_path / "requeued").read_text() == "requeue 7_2\n"
    assert "not requeued: submit the sweep again" in out


def test_a_requeued_task_waits_for_its_end_without_another_word(tmp_path: Path, tool: Tool) -> None:
    tool("scontrol", "exit 0")
    tool("sleep", "[ $1 = 120 ] && exit 143; exec /bin/sleep $1")  # as Slurm ends it
    (tmp_path / "body").write_text(CATCHES)
    job = start(script(tmp_path))
    wait_for(tmp_path / "calls")
    time.sleep(0.3)
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=20)
    assert job.returncode == 75
    assert out == "requeueing 7_2\n"


def test_a_cancelled_task_is_not_requeued(tmp_path: Path, tool: Tool) -> None:
    tool("scontrol", f"echo $@ > {tmp_path}/requeued")
    (tmp_path / "body").write_text(CATCHES)
    job = start(script(tmp_path))
    wait_for(tmp_path / "calls")
    time.sleep(0.3)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=20)
    assert job.returncode == 75
    assert not (tmp_path / "requeued").exists()


def test_a_task_that_never_ends_is_not_requeued_for_ever(tmp_path: Path, tool: Tool) -> None:
    tool("scontrol", f"echo $@ > {tmp_path}/requeued")
    (tmp_path / "body").write_text(CATCHES)
    job = start(script(tmp_path, max_requeues=3), restarts=3)
    wait_for(tmp_path / "calls")
    time.sleep(0.3)
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=20)
    assert "requeued 3 times without an end: raise cluster.time" in out
    assert not (tmp_path / "requeued").exists()


def test_the_header_says_what_the_site_needs_and_no_more(tmp_path: Path) -> None:
    text = script(tmp_path, account="physics", gpus=1, extra=["--mail-type=FAIL"]).read_text()
    for line in ('--account="physics"', '--gpus="1"', "--mail-type=FAIL", "--signal=B:USR1@120", '--time="240"'):
        assert f"#SBATCH {line}\n" in text
    assert "--partition" not in text
    assert text.index("export SITE=here") < text.index("ridgescope.cluster.worker")


def test_the_scripts_are_valid_shell_even_in_an_odd_folder(tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder" / "submissions" / "001"
    cluster = asdict(ClusterConfig())
    words = ["logging.tags=['a b']"]
    for text in (array_script("s", folder, cluster), analysis_script("s", folder, cluster, words)):
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        assert done.stderr == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cpus": 0}, "cluster.cpus=0 must be at least 1"),
        ({"max_running": 0}, "cluster.max_running=0 must be at least 1, or null"),
        ({"gpus": 1, "gres": "shard:1"}, "both ask for GPUs; keep one"),
        ({"time": 1}, "cluster.signal_seconds=120 must be at least 10 and less than the time limit of 60 s"),
        ({"at_once": 4}, "cluster.at_once=4 processes for cluster.cells_per_job=1 cells; raise cells_per_job"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        check_settings(asdict(ClusterConfig()) | changes)
