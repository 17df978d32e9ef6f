"""One cell: a folder that holds an ensemble's data splits, weights, certificates and provenance.

    config.yaml  splits.json  splits.safetensors  environment.json  programs.json  metrics.csv
    initial.safetensors    parameters (S, ...) of each seed
    program-000.safetensors, program-000.json     final parameters (E, ...) and certificate of each member
    checkpoint-000.safetensors         where a program stands that has not finished
    trajectory.parquet     risks and kernels along the way, where they were asked for
    done.json              written last; a cell without it is not finished

The folder's name ends in a hash of the resolved config: another config is another folder, and nothing that is
finished is ever written again. A program that finished before an interruption is kept.
"""

import fcntl
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from torch import Tensor

from ridgescope.train.callbacks import start_metrics
from ridgescope.train.config import cell_hash
from ridgescope.train.data import PreparedData
from ridgescope.train.ensemble import (
    FlatNetwork,
    NetworkFactory,
    design_members,
    initialise,
    members_per_program,
)
from ridgescope.train.errors import UserError
from ridgescope.train.files import read_json, write_atomically, write_json, write_tensors, write_text
from ridgescope.train.optimisers import OptimiserFactory
from ridgescope.train.plan import plan_programs
from ridgescope.train.programs import Programs
from ridgescope.train.provenance import environment
from ridgescope.train.sharding import train_on_devices
from ridgescope.train.training import Status

FORMAT = 1  # of the folder; analysis refuses any other


def train_cell(
    folder: Path,
    *,
    config: dict[str, Any],
    data: PreparedData,
    factory: NetworkFactory,
    optimiser: OptimiserFactory,
    ridges: Sequence[float],
    num_seeds: int,
    design: str,
    seed: int,
    alpha: float,
    batch_size: int | None,
    max_steps: int,
    tolerance: float,
    dtype: torch.dtype,
    accelerator: str,
    memory: int,
    stop: str = "optimum",
    online: bool = False,
    linearised: bool = False,
    measure_per_decade: int = 0,
    measure_kernels: bool = False,
    devices: int = 1,
    precision: str = "highest",
    compile: bool = False,
    checkpoint_every: float = 60.0,
    loggers: Sequence[Logger] = (),
) -> dict[str, Any]:
    """Train every member of a cell and write the folder; returns the content of ``done.json``.

    A finished cell returns at once; an interrupted one goes on from its last checkpoint, written every
    ``checkpoint_every`` seconds, and ends bit-identical on a CPU. Raises ``UserError`` for impossible settings, or when
    every member diverged, and ``Interrupted`` where a signal stopped it (:mod:`ridgescope.train.interruption`).
    """
    _check(ridges, num_seeds, alpha, max_steps, tolerance, devices)
    if is_done(folder):
        return read_json(folder / "done.json")
    if online:
        max_steps, stop = min(max_steps, _one_pass(data, batch_size)), "steps"
    with _locked(folder):
        started = time.monotonic()
        seeds = [seed + i for i in range(num_seeds)]
        network, initial = initialise(
            factory, in_shape=data.in_shape, num_outputs=data.num_outputs, seeds=seeds, dtype=dtype
        )
        num_draws, num_samples = data.splits.train.shape
        residuals = num_samples * data.num_outputs
        if stop == "optimum" and min(ridges) == 0 and residuals >= network.num_parameters:
            raise UserError(
                f"ridge 0 with P C = {residuals} residuals >= {network.num_parameters} parameters has no interpolating "
                f"optimum; use a positive ridge, a wider network, or a smaller train_size"
            )
        identity = cell_hash(config)
        _describe(folder, config, identity, data, network, initial)
        members = design_members(design, seeds, num_draws, ridges)
        cost = optimiser.bytes_per_member(network.num_parameters, residuals, initial.element_size())
        one = sum(network.activation_sizes(initial[:1], data.pool_inputs[:1]))
        # kept for a backward pass, and about as much again in its temporaries and in a forward derivative; the inputs
        cost += 3 * one * (batch_size or num_samples)
        cost += num_samples * data.pool_inputs[0].numel() * initial.element_size()
        if measure_kernels:  # both as they were at the start, and one as it is
            cost += 3 * num_samples**2 * initial.element_size()
        # every device gets a program, and no program more than the memory of one
        size = min(members_per_program(cost, memory), math.ceil(len(members) / devices))
        plan = plan_programs(folder, members, size)
        programs = Programs(
            folder,
            identity,
            plan,
            network,
            initial,
            seeds,
            data,
            alpha=alpha,
            optimiser=optimiser,
            batch_size=batch_size,
            max_steps=max_steps,
            tolerance=tolerance,
            stop=stop,
            linearised=linearised,
            measure_per_decade=measure_per_decade,
            measure_kernels=measure_kernels,
            accelerator=accelerator,
            precision=precision,
            compile=compile,
            checkpoint_every=checkpoint_every,
        )
        if devices == 1:
            programs.train(range(len(plan)), loggers=loggers)
        else:
            train_on_devices(programs, devices)
        return _finish(folder, len(plan), time.monotonic() - started)


def is_done(folder: Path) -> bool:
    return (folder / "done.json").is_file()


def _one_pass(data: PreparedData, batch_size: int | None) -> int:
    """Steps in which every training point is seen once."""
    if batch_size is None:
        raise UserError("online=true takes a fresh batch at every step; give batch_size, e.g. batch_size=10")
    return data.splits.train.shape[1] // batch_size


def _check(
    ridges: Sequence[float], num_seeds: int, alpha: float, max_steps: int, tolerance: float, devices: int
) -> None:
    if not ridges:
        raise UserError("ridges=[] trains nothing; give at least one, e.g. ridges=[1e-3]")
    for ridge in ridges:
        if not 0 <= ridge < float("inf"):
            raise UserError(f"ridge {ridge} is not possible; ridges are >= 0 and finite")
    if len(set(ridges)) != len(ridges):
        raise UserError(f"ridges={list(ridges)} names one twice; leave one out")
    if devices < 1:
        raise UserError(f"devices={devices} trains nothing; choose at least 1")
    if num_seeds < 1:
        raise UserError(f"num_seeds={num_seeds} trains nothing; choose at least 1")
    for name, value in (("alpha", alpha), ("max_steps", max_steps), ("tolerance", tolerance)):
        if not 0 < value < float("inf"):
            raise UserError(f"{name}={value} must be positive and finite")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process per cell; the lock dies with its process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error.strerror}); choose output=FOLDER") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is being trained by another process; wait for it or stop it") from None
        yield


def _describe(
    folder: Path, config: dict[str, Any], identity: str, data: PreparedData, network: FlatNetwork, initial: Tensor
) -> None:
    """Everything known before training; a restart must find the same."""
    described = folder / "config.yaml"
    if described.exists():
        before = OmegaConf.to_container(OmegaConf.load(described))
        if not isinstance(before, dict) or cell_hash({str(key): value for key, value in before.items()}) != identity:
            raise UserError(f"{folder} was begun with another config; delete the folder or choose another output")
    hashes = data.hashes()
    previous = folder / "splits.json"
    if previous.exists() and not read_json(previous)["hashes"].items() <= hashes.items():
        raise UserError(f"{folder} was begun with other splits or points; delete the folder or choose another output")
    write_text(described, OmegaConf.to_yaml(OmegaConf.create(config)))
    write_json(previous, {"hashes": hashes, "seed": config["data"]["seed"]})
    write_tensors(
        folder / "splits.safetensors",
        {name: getattr(data.splits, name) for name in ("pool", "test", "train")},
    )
    write_json(folder / "environment.json", environment())
    write_tensors(folder / "initial.safetensors", network.unflatten(initial))
    start_metrics(folder / "metrics.csv")


def _finish(folder: Path, num_programs: int, seconds: float) -> dict[str, Any]:
    members = [m for i in range(num_programs) for m in read_json(folder / f"program-{i:03d}.json")]
    count = {status: sum(m["status"] == status for m in members) for status in get_args(Status)}
    done = {
        "format": FORMAT,
        "programs": num_programs,
        "seconds": round(seconds, 3),
        "members": len(members),
    } | count
    tables = sorted(folder.glob("trajectory-*.parquet"))
    if tables:
        whole = pd.concat([pd.read_parquet(path) for path in tables], ignore_index=True)
        write_atomically(folder / "trajectory.parquet", lambda temporary: whole.to_parquet(temporary))
    write_json(folder / "done.json", done)
    for path in tables:
        path.unlink()
    if count["diverged"] == len(members):
        raise UserError(
            f"every member of {folder.name} diverged to a non-finite loss; lower optimiser.learning_rate, or use "
            f"optimiser=kernel_lbfgs"
        )
    return done
