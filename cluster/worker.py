"""What an array task runs: its share of the cells, one after the other.

A cell that fails leaves ``failed.json`` and the next one starts; the task's exit status is 0 only if none failed, so
that Slurm's own COMPLETED and FAILED are true. Stopped by a signal it exits with status 75.
"""

import sys
import time
import traceback
from pathlib import Path

from ridgescope.train.errors import Interrupted
from ridgescope.train.interruption import listen


def main(words: list[str]) -> int:
    listen()  # before torch is imported, which takes seconds
    submission, task, part = Path(words[0]), int(words[1]), int(words[2])
    try:
        return work(submission, task, part)
    except Interrupted as stop:
        print(f"ridgescope: {stop}", file=sys.stderr, flush=True)
        return stop.status


def work(folder: Path, task: int, part: int) -> int:
    """Train the cells of a task that fall to process ``part``; returns 1 if any failed, else 0."""
    from omegaconf import OmegaConf

    from ridgescope.cluster.submission import load
    from ridgescope.train.cell import is_done
    from ridgescope.train.config import cell_name, register
    from ridgescope.train.errors import UserError
    from ridgescope.train.files import write_json
    from ridgescope.train.main import run_cell
    from ridgescope.train.progress import duration, quiet, say
    from ridgescope.train.provenance import git_commit

    quiet()
    register()
    submission = load(folder)
    if submission.commit != git_commit():
        say(f"the code has changed since the sweep was submitted ({submission.commit} -> {git_commit()})")
    cells = submission.task_cells(task)[part :: submission.settings["cluster"]["at_once"]]
    failures = 0
    for cell in cells:
        target = folder.parents[1] / "cells" / cell.name
        if is_done(target):
            say(f"{cell.name} is done already")
            continue
        if (earlier := submission.failure(cell)) is not None:  # before this task was requeued
            say(f"{cell.name} has failed already: {earlier}")
            failures += 1
            continue
        say(f"training {cell.name}")
        started = time.monotonic()
        try:
            if cell_name(cell.config) != cell.name:
                raise UserError(f"this version names {cell.name} {cell_name(cell.config)}; submit the sweep again")
            run_cell(OmegaConf.create(cell.config))
        except Exception as error:
            failures += 1
            message = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, UserError):
                traceback.print_exc()
                message = f"{type(error).__name__}: {message}"
            say(f"failed: {cell.name}: {message}")
            try:
                target.mkdir(parents=True, exist_ok=True)
                write_json(target / "failed.json", {"error": message})
            except (UserError, OSError) as unwritable:
                say(f"failed.json could not be written: {unwritable}")
        else:
            say(f"done in {duration(time.monotonic() - started)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
