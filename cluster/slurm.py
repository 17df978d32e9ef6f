"""The Slurm commands that are called, as functions of plain arguments; every failure is one line with a way out."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ridgescope.train.errors import UserError

_PATIENCE = 30  # seconds; a controller that is being restarted makes the clients wait for minutes
_DEFAULT_ARRAY = 1001  # Slurm's own MaxArraySize


class SlurmError(UserError):
    """Slurm is absent, does not answer, or refused."""


@dataclass(frozen=True)
class Task:
    """An array task as Slurm sees it: ``state`` such as RUNNING, ``note`` a reason or an exit code."""

    state: str
    note: str = ""


TaskKey = tuple[int, int]  # array job, index


def call(words: Sequence[str]) -> str:
    """Standard output of a Slurm command."""
    if shutil.which(words[0]) is None:
        raise SlurmError(
            f"{words[0]} is not on the PATH; load your site's Slurm module or log in to a submit node "
            f"(`ridgescope validate` runs the same sweep without Slurm)"
        )
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{words[0]} did not answer within {_PATIENCE} s; check `scontrol ping` and SLURM_CONF, then try again"
        ) from None
    if done.returncode:
        reason = "; ".join(dict.fromkeys(re.sub(r"^\w+: (error: )?", "", x) for x in done.stderr.splitlines() if x))
        raise SlurmError(f"{words[0]} failed: {reason or f'exit status {done.returncode}'}")
    return done.stdout


def max_array_size() -> int:
    """How many tasks one array can have; indices run from 0 to one less."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call(["scontrol", "show", "config"]), re.MULTILINE)
    return int(found[1]) if found else _DEFAULT_ARRAY


def submit_script(script: Path, *arguments: str, options: Sequence[str] = ()) -> int:
    """The id of the job that ``sbatch`` makes of a script."""
    answer = call(["sbatch", "--parsable", *options, str(script), *arguments])
    return int(answer.strip().split(";")[0])  # a federated cluster adds its name


def queued(jobs: Sequence[int]) -> dict[TaskKey, Task]:
    """The array tasks of ``jobs`` that wait or run; a job that is no array has index 0."""
    if not jobs:
        return {}
    try:
        lines = call(
            ["squeue", "--noheader", "--array", "--format=%F|%K|%T|%r", f"--jobs={','.join(map(str, jobs))}"]
        ).splitlines()
    except SlurmError as error:
        if "Invalid job id" in str(error):  # all of them ended so long ago that the controller forgot them
            return {}
        raise
    found = {}
    for line in lines:
        job, index, state, reason = line.strip().split("|", 3)
        found[int(job), int(index) if index.isdigit() else 0] = Task(state, reason)
    return found


def ended(jobs: Sequence[int]) -> dict[TaskKey, Task]:
    """The last account of each array task of ``jobs``; raises ``SlurmError`` where accounting is off."""
    if not jobs:
        return {}
    names = ",".join(map(str, jobs))
    text = call(
        ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,ExitCode", f"--jobs={names}"]
    )
    found = {}
    for line in text.splitlines():
        name, state, code = line.split("|")
        job, _, index = name.partition("_")
        if job.isdigit() and (index.isdigit() or not index):  # not the bracket of tasks that never started
            found[int(job), int(index or 0)] = Task(state.split()[0], code)
    return found


def cancel(job: int) -> None:
    call(["scancel", str(job)])
