"""What was submitted, on disk, so that any later command and any job finds it without asking anybody.

    runs/<name>/submissions/<number>/
        cells.jsonl        a line per cell: name, overrides, resolved config, estimated seconds
        submission.json    settings, array jobs as they are accepted, the analysis job
        array.sh  analyse.sh  logs/

Jobs read the resolved configs: editing a YAML file changes no pending job.
"""

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ridgescope.train.errors import UserError
from ridgescope.train.files import read_json, write_json, write_text


@dataclass(frozen=True)
class PlannedCell:
    """A cell to be trained: folder name, the overrides it came from, its resolved config, a guess of its seconds."""

    name: str
    overrides: list[str]
    config: dict[str, Any]
    estimate: float = 0.0


@dataclass(frozen=True)
class ArrayJob:
    """Job ``id`` runs the tasks ``first``, ``first + 1``, ..., ``first + count - 1`` as its indices 0, 1, ..."""

    id: int
    first: int
    count: int


@dataclass
class Submission:
    """One call of ``submit``: cells in chunks of ``cells_per_job``; chunk t is task t."""

    folder: Path
    cells: list[PlannedCell]
    settings: dict[str, Any]
    commit: str | None = None
    arrays: list[ArrayJob] = field(default_factory=list)
    analysis: int | None = None

    @property
    def cells_per_job(self) -> int:
        return int(self.settings["cluster"]["cells_per_job"])

    @property
    def num_tasks(self) -> int:
        return -(-len(self.cells) // self.cells_per_job)

    def task_cells(self, task: int) -> list[PlannedCell]:
        return self.cells[task * self.cells_per_job : (task + 1) * self.cells_per_job]

    def job_of(self, cell: int) -> tuple[int, int] | None:
        """Array job and index of the ``cell``-th cell; None if its array was never accepted."""
        task = cell // self.cells_per_job
        for job in self.arrays:
            if job.first <= task < job.first + job.count:
                return job.id, task - job.first
        return None

    def log_of(self, cell: int) -> Path | None:
        job = self.job_of(cell)
        return None if job is None else self.folder / "logs" / f"{job[0]}_{job[1]}.log"

    def failure(self, cell: PlannedCell) -> str | None:
        """What a job of this submission, not of an earlier one, has said about a cell that failed."""
        path = self.folder.parents[1] / "cells" / cell.name / "failed.json"
        try:
            if path.stat().st_mtime_ns < (self.folder / "cells.jsonl").stat().st_mtime_ns:
                return None
            return str(read_json(path)["error"]).splitlines()[0]
        except OSError:  # mostly: there is none
            return None
        except (UserError, KeyError, IndexError):  # the disk was full when it was written
            return "failed, without a message"

    def save(self) -> None:
        content = asdict(self)
        del content["folder"], content["cells"]
        write_json(self.folder / "submission.json", content)


def create(
    experiment: Path, cells: Sequence[PlannedCell], settings: dict[str, Any], commit: str | None = None
) -> Submission:
    """A new numbered folder that nobody else gets."""
    number = 1 + max((int(path.name) for path in _folders(experiment)), default=0)
    while True:
        folder = experiment / "submissions" / f"{number:03d}"
        try:
            (folder / "logs").mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(f"cannot write {folder} ({error.strerror}); choose output=FOLDER") from error
    write_text(folder / "cells.jsonl", "".join(json.dumps(asdict(cell)) + "\n" for cell in cells))
    submission = Submission(folder, list(cells), settings, commit)
    submission.save()
    return submission


def load(folder: Path) -> Submission:
    content = read_json(folder / "submission.json")
    arrays = [ArrayJob(**job) for job in content["arrays"]]
    try:
        cells = [PlannedCell(**json.loads(line)) for line in (folder / "cells.jsonl").read_text().splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {folder / 'cells.jsonl'} ({error}); submit the sweep again") from error
    return Submission(folder, cells, content["settings"], content["commit"], arrays, content["analysis"])


def load_all(experiment: Path) -> list[Submission]:
    """The submissions of an experiment, oldest first."""
    return [load(folder) for folder in _folders(experiment) if (folder / "submission.json").is_file()]


def _folders(experiment: Path) -> list[Path]:
    return sorted(path for path in (experiment / "submissions").glob("*") if path.name.isdigit())


@contextmanager
def alone(experiment: Path) -> Iterator[None]:
    """One submit command per experiment at a time: the second sees what the first has put into the queue."""
    path = experiment / "submissions" / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError as error:
        raise UserError(f"cannot write {path.parent} ({error.strerror}); choose output=FOLDER") from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
