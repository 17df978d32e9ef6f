"""``ridgescope train``: one cell, or with ``-m`` a Hydra multirun of cells."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from ridgescope.train.cell import is_done, train_cell
from ridgescope.train.config import cell_name, checked, parse_memory, register
from ridgescope.train.data import prepare_data
from ridgescope.train.entry import one_line_errors
from ridgescope.train.errors import UserError, first_line
from ridgescope.train.files import write_json
from ridgescope.train.loggers import watching
from ridgescope.train.networks import network_factory
from ridgescope.train.progress import duration, quiet, say

_PASSED_ON = (
    "ridges", "num_seeds", "design", "seed", "alpha", "batch_size", "max_steps", "tolerance", "stop", "online",
    "linearised", "measure_per_decade", "measure_kernels", "accelerator", "devices", "precision", "compile",
    "checkpoint_every",
)  # fmt: skip
_DTYPES = {"float64": torch.float64, "float32": torch.float32}


def cell_folder(config: dict[str, Any]) -> Path:
    return Path(config["output"]) / config["name"] / "cells" / cell_name(config)


def run_cell(config: DictConfig) -> Path:
    """Train the cell that ``config`` describes, unless it is done; returns its folder.

    A failure leaves ``failed.json`` with its first line in the folder and is raised again.
    """
    plain = checked(config)
    folder = cell_folder(plain)
    if is_done(folder):
        return folder
    try:
        _train(plain, folder)
    except UserError as error:
        if folder.is_dir():
            with suppress(UserError):  # on a full disk the first message is the one that matters
                write_json(folder / "failed.json", {"error": str(error)})
        raise
    (folder / "failed.json").unlink(missing_ok=True)
    return folder


def _train(plain: dict[str, Any], folder: Path) -> None:
    if plain["dtype"] not in _DTYPES:
        raise UserError(f"dtype={plain['dtype']!r} is unknown; choose float64 or float32")
    dtype = _DTYPES[plain["dtype"]]
    memory = parse_memory(plain["memory"])
    if not 0 <= plain["checkpoint_every"] < float("inf"):
        raise UserError(f"checkpoint_every={plain['checkpoint_every']} is a number of seconds; choose 60, or 0 for all")
    factory = network_factory(plain["model"])
    try:
        optimiser = instantiate(plain["optimiser"])
    except Exception as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(f"cannot make {plain['optimiser'].get('_target_')}: {reason}") from error
    data = prepare_data(**plain["data"], num_draws=plain["num_draws"], dtype=dtype)
    with watching(folder, plain) as (loggers, summarise):
        try:
            done = train_cell(
                folder,
                config=plain,
                data=data,
                factory=factory,
                optimiser=optimiser,
                dtype=dtype,
                memory=memory,
                loggers=loggers,
                **{key: plain[key] for key in _PASSED_ON},
            )
        except UserError:
            raise
        except ValueError as error:  # such as a network that has no tangent kernel, in one line
            raise UserError(str(error)) from error
        summarise({f"cell/{key}": value for key, value in done.items() if key != "format"})


@hydra.main(version_base="1.3", config_path="pkg://ridgescope.conf", config_name="train")
@one_line_errors
def main(config: DictConfig) -> None:
    quiet()
    folder = cell_folder(checked(config))
    if is_done(folder):
        say(f"{folder} is done already")
        return
    say(f"training {folder}")
    start = time.monotonic()
    run_cell(config)
    say(f"done in {duration(time.monotonic() - start)}: {os.path.relpath(folder)}")


register()
