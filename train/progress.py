"""Progress of long loops: a bar on a terminal, plain lines in a log, an estimate before anything long."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY = 30.0  # seconds between plain lines


def on_terminal() -> bool:
    """True where a bar can be drawn: an interactive stderr outside Slurm jobs."""
    return sys.stderr.isatty() and "SLURM_JOB_ID" not in os.environ


def quiet() -> None:
    """Lightning and wandb announce themselves at every fit; a sweep has hundreds."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")


def say(text: str) -> None:
    """One plain line on stderr, at once."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """``75`` -> ``1 min 15 s``."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


class _Lines:
    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        self.start = self.last = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        self.done += steps
        now = time.monotonic()
        if now - self.last >= LINE_EVERY or self.done == self.total:
            self.last = now
            spent = now - self.start
            left = spent / self.done * (self.total - self.done)
            end = "" if self.done == self.total else f", about {duration(left)} left"
            say(f"{self.label}: {self.done}/{self.total} ({self.done / self.total:.0%}) after {duration(spent)}{end}")


class _Bar:
    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self.progress, self.task = progress, progress.add_task(label, total=total)

    def advance(self, steps: int = 1) -> None:
        self.progress.advance(self.task, steps)


@contextmanager
def progress(label: str, total: int) -> Iterator[_Lines | _Bar]:
    """``with progress("measuring", 12) as steps: ... steps.advance()``."""
    if not on_terminal():
        yield _Lines(label, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        yield _Bar(bar, label, total)
