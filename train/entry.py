"""What every Hydra command has around it."""

from collections.abc import Callable
from functools import wraps

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ridgescope.train.errors import UserError
from ridgescope.train.progress import say


def one_line_errors(command: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """A mistake ends a command as one line and status 2, before Hydra can add its own account of it.

    In a multirun it is raised, so that the other cells go on.
    """

    @wraps(command)
    def wrapped(config: DictConfig) -> None:
        try:
            command(config)
        except UserError as error:
            if HydraConfig.get().mode is not RunMode.RUN:
                raise
            say(f"ridgescope: error: {error}")
            raise SystemExit(2) from error

    return wrapped
