"""What watches a cell from outside, by configuration: wandb and TensorBoard. Neither is ever needed.

One wandb run per cell. Group: the experiment. Job type: train. Name: the cell's folder. Id: experiment and cell hash,
the same after every restart. Tags: data, model, and those of the configuration. Every curve is drawn against
``trainer/global_step``, since wandb's own step starts again with every restart.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from ridgescope.train.config import cell_hash, model_name
from ridgescope.train.errors import UserError
from ridgescope.train.wandb_logging import finish, make_logger


@contextmanager
def watching(
    folder: Path, config: dict[str, Any]
) -> Iterator[tuple[list[Logger], Callable[[Mapping[str, float]], None]]]:
    """The loggers of a cell, and a function that adds to the summary of its wandb run, which ends with the block."""
    settings, model = config["logging"], model_name(config)
    tensorboard = [make_tensorboard(folder)] if settings["tensorboard"] else []
    wandb = make_logger(
        folder,
        mode=settings["wandb"],
        project=settings["project"],
        entity=settings["entity"],
        group=config["name"],
        job_type="train",
        name=folder.name,
        run_id=f"{config['name']}-{cell_hash(config)}",
        tags=[config["data"]["name"], model, *settings["tags"]],
        config=config,
    )

    def summarise(values: Mapping[str, float]) -> None:
        if wandb is not None:
            wandb.experiment.summary.update(dict(values))

    try:
        yield [*([wandb] if wandb is not None else []), *tensorboard], summarise
    finally:
        finish(wandb)


def make_tensorboard(folder: Path) -> TensorBoardLogger:
    """Event files in ``folder/tensorboard``."""
    try:
        return TensorBoardLogger(folder, name=None, version="tensorboard")
    except ModuleNotFoundError as error:
        raise UserError(
            "logging.tensorboard=true needs TensorBoard: pip install 'ridgescope[tensorboard]', or leave it false"
        ) from error
