"""Uploads what jobs without a network have written: ``wandb sync`` for every offline run under an experiment."""

import subprocess
import sys
from pathlib import Path

from ridgescope.train.errors import UserError
from ridgescope.train.wandb_logging import why_offline

_SYNC = (sys.executable, "-m", "wandb", "sync", "--yes", "--include-online")
_AT_ONCE = 200  # folders a call: a command line has an end


def offline_runs(experiment: Path, online: bool = False) -> list[Path]:
    """Folders of runs that are not uploaded yet, in the order in which they began: wandb joins those of one id.

    ``online``: also those that began online, one of which may have lost its network half way.
    """
    if not experiment.is_dir():
        raise UserError(f"{experiment} is no folder; give the experiment's, such as folder=runs/validate_digits")
    kinds = ("offline-run-", "run-") if online else ("offline-run-",)
    found = [path.parent for path in experiment.rglob("run-*.wandb") if path.parent.name.startswith(kinds)]
    todo = [run for run in found if not list(run.glob("*.wandb.synced"))]
    return sorted(todo, key=lambda run: run.name.removeprefix("offline-"))


def upload(runs: list[Path]) -> None:
    """Raises ``UserError`` without a key or a network; what is uploaded already is skipped the next time."""
    reason = why_offline()
    if runs and reason is not None:
        raise UserError(f"{len(runs)} runs cannot be uploaded from here: {reason}; try where there are both")
    for first in range(0, len(runs), _AT_ONCE):
        paths = map(str, runs[first : first + _AT_ONCE])
        if subprocess.run([*_SYNC, *paths], check=False).returncode:
            raise UserError("wandb sync did not upload everything; the same command goes on with the rest")
