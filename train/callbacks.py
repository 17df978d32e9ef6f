"""What watches a program while it trains: its metrics, its progress, its checkpoints."""

import csv
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from ridgescope.train import interruption
from ridgescope.train.checkpoint import Checkpoint, CheckpointFile
from ridgescope.train.errors import UserError
from ridgescope.train.progress import LINE_EVERY, say
from ridgescope.train.training import EnsembleTraining


class MetricsFile(L.Callback):
    """Appends one row per member to ``metrics.csv`` every ``every`` steps.

    A restart repeats the steps since the last checkpoint and adds their rows again, with a higher ``restart``: nothing
    is taken away but a last line that was cut. Rows of one program, step and member differ in ``restart`` and
    ``seconds`` only.
    """

    columns = (
        "restart",
        "program",
        "step",
        "member",
        "loss",
        "train_risk",
        "optimality_gap",
        "active",
        "seconds",
    )

    def __init__(self, path: Path, program: int, every: int = 10) -> None:
        self.path, self.program, self.every = path, program, every

    def on_fit_start(self, trainer: L.Trainer, training: L.LightningModule) -> None:
        self.start, self.restart = time.monotonic(), 0
        if self.path.exists():
            _cut_last_line(self.path)
            with self.path.open() as handle:
                rows = [int(row["restart"]) for row in csv.DictReader(handle) if row["program"] == str(self.program)]
            self.restart = max(rows, default=-1) + 1
        else:
            start_metrics(self.path)

    def on_train_batch_end(self, trainer: L.Trainer, training: L.LightningModule, *_: Any) -> None:
        assert isinstance(training, EnsembleTraining)
        if training.step % self.every == 0 and not training.finished:
            self._record(trainer, training)

    def on_train_end(self, trainer: L.Trainer, training: L.LightningModule) -> None:
        self._record(trainer, training)

    def _record(self, trainer: L.Trainer, training: L.LightningModule) -> None:
        assert isinstance(training, EnsembleTraining)
        seconds = f"{time.monotonic() - self.start:.3f}"
        columns = (training.losses, training.fits, training.gaps, training.active)
        values = zip(*(column.tolist() for column in columns), strict=True)
        self._append(
            [
                (
                    self.restart,
                    self.program,
                    training.step,
                    e,
                    f"{a!r}",
                    f"{b!r}",
                    f"{c!r}",
                    int(d),
                    seconds,
                )
                for e, (a, b, c, d) in enumerate(values)
            ]
        )
        summary = {
            "train/program": float(self.program),
            "train/loss": float(training.losses.median()),
            "train/risk": float(training.fits.median()),
            "train/optimality_gap": float(training.gaps.max()),
            "train/active_members": float(training.active.sum()),
        }
        for logger in trainer.loggers:
            logger.log_metrics(summary, step=training.step)

    def _append(self, rows: Sequence[Sequence[object]]) -> None:
        _append(self.path, rows)


def start_metrics(path: Path) -> None:
    if not path.exists():
        _append(path, [MetricsFile.columns])


def _append(path: Path, rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, text.getvalue().encode())  # at once: processes of several devices share the file
        finally:
            os.close(handle)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); free space, the same command continues") from error


def _cut_last_line(path: Path) -> None:
    """Take away what a killed process left of a line that it had not finished."""
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        with path.open("r+b") as handle:
            handle.truncate(content.rfind(b"\n") + 1)


class PlainProgress(L.Callback):
    """A line every half minute (most programs finish before the first), and one for each member that diverges, which
    names its ``cell``: the folder that holds the config."""

    def __init__(self, cell: str = "") -> None:
        self.cell = cell

    def on_fit_start(self, trainer: L.Trainer, training: L.LightningModule) -> None:
        self.named: set[int] = set()

    def on_train_start(self, trainer: L.Trainer, training: L.LightningModule) -> None:
        self.last = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, training: L.LightningModule, *_: Any) -> None:
        assert isinstance(training, EnsembleTraining)
        if training.num_diverged > len(self.named):
            for e in set(training.diverged.nonzero()[:, 0].tolist()) - self.named:
                self.named.add(e)
                step, member = int(training.steps[e]), training.members[e]
                say(f"  {self.cell} diverged at step {step}, the others go on: {member}")
        if time.monotonic() - self.last >= LINE_EVERY:
            self.last = time.monotonic()
            say(
                f"  step {training.step} of at most {training.max_steps}: {int(training.active.sum())} of "
                f"{len(training.members)} members still training, largest gap {float(training.gaps.max()):.1e}"
            )


class Checkpoints(L.Callback):
    """Goes on from the program's checkpoint ``start``; writes one every ``every`` seconds, and where a signal waits.

    Writing takes at most a twentieth of the time: large ensembles on slow disks get fewer checkpoints.
    """

    def __init__(self, file: CheckpointFile, start: Checkpoint | None, every: float) -> None:
        self.file, self.start, self.every = file, start, every

    def on_train_start(self, trainer: L.Trainer, training: L.LightningModule) -> None:
        interruption.listen_again()
        self.last, self.pause = time.monotonic(), self.every
        if self.start is not None:
            assert isinstance(training, EnsembleTraining)
            training.resume(self.start.step, self.start.training)
            state = trainer.optimizers[0].state[training.theta]
            state |= {name: value.to(training.device) for name, value in self.start.optimiser.items()}
            self.start = None

    def on_train_batch_end(self, trainer: L.Trainer, training: L.LightningModule, *_: Any) -> None:
        assert isinstance(training, EnsembleTraining)
        if training.finished:
            return
        if interruption.noted():
            self._write(trainer, training)
            interruption.raise_noted(f" after step {training.step}")
        if time.monotonic() - self.last >= self.pause:
            self._write(trainer, training)

    def _write(self, trainer: L.Trainer, training: EnsembleTraining) -> None:
        begun = time.monotonic()
        optimiser = {name: v for name, v in trainer.optimizers[0].state[training.theta].items() if v is not None}
        self.file.write(Checkpoint(training.step, training.progress(), optimiser))
        self.last = time.monotonic()
        self.pause = max(self.every, 20 * (self.last - begun))
