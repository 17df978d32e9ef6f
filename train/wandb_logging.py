"""wandb as a view of the results: never needed, never waited for.

One wandb run per job; group = experiment name, job type = train or analysis, id = cell hash (stable over restarts).
"""

import netrc
import os
import socket
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger

from ridgescope.train.errors import UserError
from ridgescope.train.progress import say

Mode = Literal["online", "offline", "disabled"]
_CONNECT_SECONDS = 3.0


def resolve_mode(wanted: str) -> Mode:
    """``auto`` becomes online only where a key is configured and the server answers; else offline.

    wandb itself would block for 100 s before it found out that there is no network.
    """
    wanted = os.environ.get("WANDB_MODE") or wanted
    if wanted == "dryrun":  # what Lightning's logger itself writes into the environment once it is offline
        wanted = "offline"
    if wanted in ("online", "offline", "disabled"):
        return wanted  # type: ignore[return-value]
    if wanted != "auto":
        raise UserError(f"logging.wandb={wanted!r} is unknown; choose auto, online, offline or disabled")
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    return "online" if _has_key(server.hostname) and _answers(server.hostname, server.port or 443) else "offline"


def make_logger(
    folder: Path,
    *,
    mode: str,
    project: str,
    entity: str | None,
    group: str,
    job_type: str,
    name: str,
    run_id: str,
    tags: list[str],
    config: dict[str, Any],
) -> WandbLogger | None:
    """A logger whose files lie under ``folder``, or None when disabled or when wandb cannot start."""
    resolved = resolve_mode(mode)
    if resolved == "disabled":
        return None
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "10")
    try:
        logger = WandbLogger(
            project=project,
            entity=entity,
            group=group,
            job_type=job_type,
            name=name,
            id=run_id,
            tags=tags,
            save_dir=folder,
            dir=str(folder),
            config=config,
            offline=resolved == "offline",
        )
        _ = logger.experiment  # starts it, so that a failure shows here and not in the middle of a fit
    except Exception as error:
        say(f"wandb is not available ({str(error).splitlines()[0]}); results are in {folder} all the same")
        return None
    logger.experiment.define_metric("*", step_metric="trainer/global_step")
    return logger


def finish(logger: WandbLogger | None) -> None:
    """End the run; without it the next job of this process would be logged into this one."""
    if logger is not None:
        logger.experiment.finish()


def _has_key(host: str | None) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return host is not None and netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _answers(host: str | None, port: int) -> bool:
    try:
        with socket.create_connection((host or "", port), timeout=_CONNECT_SECONDS):
            return True
    except OSError:
        return False
