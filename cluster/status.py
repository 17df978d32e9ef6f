"""The state of every cell of an experiment: from its folder, and for what is not finished from Slurm.

    done      done.json is there
    running   its task runs and has begun with it
    waiting   its task is in the queue, or runs and has not come to it yet
    failed    failed.json says why; or its task ended after it had begun, and Slurm's accounts or the log say why
    missing   no job has begun with it

No torch here: a login node answers at once.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ridgescope.cluster.slurm import SlurmError, Task, TaskKey, ended, queued
from ridgescope.cluster.submission import PlannedCell, Submission, load_all
from ridgescope.train.errors import UserError
from ridgescope.train.files import read_json
from ridgescope.train.progress import duration

State = Literal["done", "running", "waiting", "failed", "missing"]

# everything else that squeue gives as a reason is worth a look: most such jobs wait for ever
_PATIENT = {"None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit", "Reservation", "Prolog"}

_ENDS = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "reached the time limit; raise cluster.time or cluster.signal_seconds",
    "OUT_OF_MEMORY": "ran out of memory; raise cluster.mem or lower memory",
    "NODE_FAIL": "its node was lost",
    "PREEMPTED": "preempted",
    "DEADLINE": "could not end before its deadline",
}


@dataclass(frozen=True)
class CellState:
    """``reason`` is the first line of what went wrong, for a cell that failed."""

    cell: PlannedCell
    state: State
    reason: str = ""


@dataclass(frozen=True)
class Overview:
    """``states`` in the order of submission; ``lanes`` how many cells are trained at this moment; ``notes`` what
    could not be found out."""

    experiment: Path
    states: list[CellState]
    lanes: int
    notes: list[str]

    def of(self, *wanted: State) -> list[CellState]:
        return [state for state in self.states if state.state in wanted]

    def seconds_left(self) -> float | None:
        """Estimated time of what runs and waits: the estimates of submission, corrected by the cells that are done."""
        busy, done = self.of("running", "waiting"), self.of("done")
        guess = sum(state.cell.estimate for state in done)
        if not busy or guess <= 0:
            return None
        spent = sum(float(read_json(self._done(state))["seconds"]) for state in done)
        return spent / guess * sum(state.cell.estimate for state in busy) / max(1, self.lanes)

    def _done(self, state: CellState) -> Path:
        return self.experiment / "cells" / state.cell.name / "done.json"

    def lines(self) -> list[str]:
        """One line with the counts, then what is not done, then the notes."""
        counts = Counter(state.state for state in self.states)
        kinds: tuple[State, ...] = ("done", "running", "waiting", "failed", "missing")
        text = ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind] or kind == "done")
        left = self.seconds_left()
        lines = [f"{self.experiment.name}: {len(self.states)} cells: {text}"]
        lines[0] += f"; about {duration(left)} left" if left is not None else ""
        for kind in ("running", "failed", "missing"):
            for state in self.of(kind):
                lines.append(f"  {kind:8}{state.cell.name}{': ' if state.reason else ''}{state.reason}")
        return lines + self.notes


def overview(experiment: Path) -> Overview:
    """Read folders, queue and accounts. Raises ``UserError`` where nothing was submitted; Slurm may be absent."""
    submissions = load_all(experiment)
    if not submissions:
        raise UserError(
            f"{experiment} holds no submissions; submit some first: ridgescope submit name={experiment.name}"
        )
    jobs = [job.id for submission in submissions for job in submission.arrays]
    notes: list[str] = []
    queue: Mapping[TaskKey, Task] | None = None
    accounts: Mapping[TaskKey, Task] = {}
    if any(not _is_done(experiment, cell) for submission in submissions for cell in submission.cells):
        try:
            queue = queued(jobs)
        except SlurmError as error:
            notes.append(f"the queue is not known, so what runs or waits is shown as failed or missing: {error}")
        try:
            accounts = ended(jobs)
        except SlurmError as error:
            notes.append(f"the accounts are not known, so some reasons are missing: {error}")
    odd = Counter(task.note for task in (queue or {}).values() if task.state == "PENDING")
    notes += [f"{count} tasks wait because of {why}" for why, count in odd.items() if why not in _PATIENT]
    states: dict[str, CellState] = {}
    lanes = set()
    for submission in submissions:  # the last word has the last submission, unless an earlier one is at it
        for index, cell in enumerate(submission.cells):
            state = cell_state(submission, index, queue or {}, accounts)
            held = states.get(cell.name)
            if held is None or held.state not in ("running", "waiting"):
                states[cell.name] = state
            if state.state == "running":
                lanes.add((submission.job_of(index), index % submission.settings["cluster"]["at_once"]))
    return Overview(experiment, list(states.values()), len(lanes), notes)


def cell_state(
    submission: Submission, index: int, queue: Mapping[TaskKey, Task], accounts: Mapping[TaskKey, Task]
) -> CellState:
    """What became of the ``index``-th cell of a submission."""
    cell, key = submission.cells[index], submission.job_of(index)
    experiment = submission.folder.parents[1]
    if _is_done(experiment, cell):
        return CellState(cell, "done")
    if (reason := submission.failure(cell)) is not None:
        return CellState(cell, "failed", reason)
    begun = (experiment / "cells" / cell.name).is_dir()
    if key is not None and key in queue:
        return CellState(cell, "running" if begun and queue[key].state != "PENDING" else "waiting")
    if key is None or not (begun or key in accounts):
        return CellState(cell, "missing")
    if not begun and accounts[key].state == "CANCELLED":
        return CellState(cell, "missing", "cancelled before it began")
    if not begun and _came_after_others(submission, index):
        return CellState(cell, "missing", "its job ended before it came to it")
    account = accounts.get(key)
    if account is None:
        reason = "its job is gone"
    else:
        reason = _ENDS.get(account.state, f"{account.state.lower()}, exit code {account.note}")
    return CellState(cell, "failed", f"{reason}{_last_words(submission.log_of(index))}")


def _came_after_others(submission: Submission, index: int) -> bool:
    """Whether a process of the cell's task began with a cell before this one, and never spoke of this one."""
    first, stride = index - index % submission.cells_per_job, submission.settings["cluster"]["at_once"]
    earlier = submission.cells[first + (index - first) % stride : index : stride]
    begun = any((submission.folder.parents[1] / "cells" / cell.name).is_dir() for cell in earlier)
    log = submission.log_of(index)
    spoken = log is not None and log.is_file() and submission.cells[index].name in log.read_text(errors="replace")
    return begun and not spoken


def _is_done(experiment: Path, cell: PlannedCell) -> bool:
    return (experiment / "cells" / cell.name / "done.json").is_file()


def _last_words(log: Path | None) -> str:
    """The line of a log that says most: the last that speaks of a failure or an error, or the last one."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log else []
    except OSError:
        return ""
    telling = [line for line in lines if line.startswith("failed: ") or "error" in line.lower()] or lines
    return f"; last words of {log}: {telling[-1][:200]}" if telling else ""


def unfinished(states: Sequence[CellState]) -> list[PlannedCell]:
    """What a resubmission takes."""
    return [state.cell for state in states if state.state in ("failed", "missing")]
