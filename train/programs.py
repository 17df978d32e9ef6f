"""The programs of a cell: each is one ensemble, one Lightning fit, one pair of result files."""

import gc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor

from ridgescope.train import interruption
from ridgescope.train.callbacks import Checkpoints, MetricsFile, PlainProgress
from ridgescope.train.checkpoint import CheckpointFile
from ridgescope.train.data import PreparedData, RidgeData
from ridgescope.train.ensemble import FlatNetwork, Forward, Member
from ridgescope.train.errors import UserError
from ridgescope.train.files import write_atomically, write_json, write_tensors
from ridgescope.train.optimisers import OptimiserFactory
from ridgescope.train.plan import checkpoint_path, finished
from ridgescope.train.training import EnsembleTraining
from ridgescope.train.trajectory import Trajectory, log_spaced_steps, program_table

PRECISIONS = ("highest", "tf32", "bf16")


@dataclass(frozen=True)
class Programs:
    """All that the programs of a cell share. ``plan`` has the members of each; ``initial`` (S, p) is by seed."""

    folder: Path
    identity: str
    plan: list[list[Member]]
    network: FlatNetwork
    initial: Tensor
    seeds: Sequence[int]
    data: PreparedData
    alpha: float
    optimiser: OptimiserFactory
    batch_size: int | None
    max_steps: int
    tolerance: float
    stop: str
    linearised: bool
    measure_per_decade: int
    measure_kernels: bool
    accelerator: str
    precision: str
    compile: bool
    checkpoint_every: float

    def train(self, indices: Iterable[int], device: int | None = None, loggers: Sequence[Logger] = ()) -> None:
        """Train those of ``indices`` that are not finished, from their checkpoints where they have any."""
        for index in indices:
            checkpoints = CheckpointFile(checkpoint_path(self.folder, index), self.identity, self.plan[index])
            if finished(self.folder, index) is None:
                # a trainer and its module hold each other: their tensors would stay until Python looks for cycles
                with collected(), interruption.deferred():
                    self._train(index, checkpoints, device, loggers)
            checkpoints.remove()

    def _train(self, index: int, checkpoints: CheckpointFile, device: int | None, loggers: Sequence[Logger]) -> None:
        start = checkpoints.read()
        first = start.step if start is not None else 0
        module = RidgeData(self.data, batch_size=self.batch_size, seed=self.seeds[0], first_step=first)
        members = self.plan[index]
        training = EnsembleTraining(
            self.network,
            self.initial[[self.seeds.index(member.seed) for member in members]],
            members,
            inputs=module.inputs,
            targets=module.targets,
            alpha=self.alpha,
            optimiser=self.optimiser,
            batch_size=self.batch_size,
            tolerance=self.tolerance,
            max_steps=self.max_steps,
            stop=self.stop,
            linearised=self.linearised,
            forward=fast_forward(self.network, self.precision, self.compile, self.initial.dtype),
        )
        test = (self.data.test_inputs, self.data.test_targets)
        callbacks: list[L.Callback] = [MetricsFile(self.folder / "metrics.csv", index), PlainProgress(self.folder.name)]
        steps = log_spaced_steps(self.max_steps, self.measure_per_decade)
        if steps:
            callbacks.append(Trajectory(steps, test, kernels=self.measure_kernels))
        callbacks.append(Checkpoints(checkpoints, start, self.checkpoint_every))  # after all that it saves
        fit(training, module, accelerator=self.accelerator, device=device, loggers=loggers, callbacks=callbacks)
        save_program(self.folder, index, training, test)


@contextmanager
def collected() -> Iterator[None]:
    """Frees at its end what the block left in reference cycles, without a visit to older objects (imports: 0.25 s)."""
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


def fast_forward(network: FlatNetwork, precision: str, compile: bool, dtype: torch.dtype) -> Forward | None:
    """``network.apply`` as asked for, or None for itself.

    ``tf32`` rounds the factors of matrix products on NVIDIA devices to 10 bits, ``bf16`` everything but sums to 8.
    """
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    if precision != "highest" and dtype != torch.float32:
        raise UserError(f"precision={precision} is a way to compute in float32; give dtype=float32 too")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    forward: Forward = network.apply
    if compile:
        forward = torch.compile(forward)
    if precision != "bf16":
        return forward if compile else None

    def autocast(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16):
            return forward(parameters, inputs).to(dtype)

    return autocast


def fit(
    training: EnsembleTraining,
    data: RidgeData,
    *,
    accelerator: str = "cpu",
    device: int | None = None,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[L.Callback] = (),
) -> None:
    """One Lightning fit of one program: a single epoch without end, which the training itself stops.

    ``device`` is the number of the accelerator's device, by default the first.
    """
    trainer = L.Trainer(
        max_epochs=1,
        accelerator=accelerator,
        devices=1 if device is None or accelerator == "cpu" else [device],
        logger=list(loggers) or False,
        callbacks=list(callbacks),
        plugins=[LightningEnvironment()],  # one process, whatever batch system it runs under
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(training, data)


def save_program(folder: Path, index: int, training: EnsembleTraining, test: tuple[Tensor, Tensor]) -> None:
    """Weights first: the record, which says that the program is done, comes last."""
    if training.trajectory.numel():
        table = program_table(training.members, training.trajectory)
        path = folder / f"trajectory-{index:03d}.parquet"
        write_atomically(path, lambda temporary: table.to_parquet(temporary))
    write_tensors(folder / f"program-{index:03d}.safetensors", training.network.unflatten(training.theta.detach()))
    columns = zip(
        training.members,
        training.statuses(),
        training.steps.tolist(),
        training.gaps.tolist(),
        training.losses.tolist(),
        training.fits.tolist(),
        training.risks(*test).tolist(),
        strict=True,
    )
    write_json(
        folder / f"program-{index:03d}.json",
        [
            asdict(member)
            | {"status": status, "steps": steps, "optimality_gap": gap, "loss": loss}
            | {"train_risk": train, "test_risk": test_risk}
            for member, status, steps, gap, loss, train, test_risk in columns
        ],
    )
