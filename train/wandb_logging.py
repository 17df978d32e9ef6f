"""wandb as a view of the results: never needed, never waited for longer than ten seconds.

Without a key or an answer from the server a run is written offline, into the folder that it is about, and
``ridgescope sync`` uploads it later; where the network goes away half way, everything is on disk as well.
"""

import netrc
import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger

from ridgescope.train.errors import UserError, first_line
from ridgescope.train.progress import say

Mode = Literal["online", "offline", "disabled"]
_CONNECT_SECONDS = 2.0
_START_SECONDS = 5.0
_FINISH_SECONDS = 4.0  # for what is not uploaded yet at the end


def resolve_mode(wanted: str) -> Mode:
    """``auto`` and ``online`` become offline without a key or an answer; where online was asked for, with a word.

    wandb itself would block for 100 s before it found out that there is no network.
    """
    wanted = os.environ.get("WANDB_MODE") or wanted
    if wanted == "dryrun":  # what Lightning's logger itself writes into the environment once it is offline
        wanted = "offline"
    if wanted in ("offline", "disabled"):
        return wanted  # type: ignore[return-value]
    if wanted not in ("auto", "online"):
        raise UserError(f"logging.wandb={wanted!r} is unknown; choose auto, online, offline or disabled")
    reason = why_offline()
    if reason is None:
        return "online"
    if wanted == "online":
        say(f"wandb: {reason}; writing offline, upload it later with ridgescope sync")
    return "offline"


def why_offline() -> str | None:
    """Why nothing can be sent from here, or None. A name server that does not answer is waited for no longer either."""
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if not _has_key(server.hostname):
        return "no key (wandb login, or WANDB_API_KEY)"
    answered: list[bool] = []
    port = server.port or (80 if server.scheme == "http" else 443)
    asking = Thread(target=lambda: answered.append(_answers(server.hostname, port)), daemon=True)
    asking.start()
    asking.join(_CONNECT_SECONDS)
    return None if answered == [True] else f"no answer from {server.hostname} within {_CONNECT_SECONDS:.0f} s"


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
    words: dict[str, Any] = {
        "project": project,
        "entity": entity,
        "group": group,
        "job_type": job_type,
        "name": name,
        "id": re.sub(r"[^\w.-]", "-", run_id),  # wandb refuses some characters
        "tags": tags,
        "config": config,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if resolved == "online":
            try:
                return _start(folder, words, offline=False)
            except Exception as error:
                _give_up()
                say(f"wandb: {first_line(error)}; writing offline, upload it later with ridgescope sync")
        return _start(folder, words, offline=True)
    except Exception as error:
        _give_up()
        say(f"wandb is not available ({first_line(error)}); results are in {folder} all the same")
        return None


def finish(logger: WandbLogger | None) -> None:
    """End the run; without it the next job of this process would be logged into this one."""
    if logger is None:
        return
    try:
        logger.experiment.finish()
    except Exception as error:  # such as a full disk: the run is a view, the results are elsewhere
        _give_up()
        say(f"wandb: the run ended early ({first_line(error)})")


def _start(folder: Path, words: dict[str, Any], *, offline: bool) -> WandbLogger:
    # its own error reports wait for a network of their own, 12 to 20 s at the end of a process that has none
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    settings = wandb.Settings(
        mode="offline" if offline else "online",  # the process may have had a run of the other kind before
        init_timeout=_START_SECONDS,
        finish_timeout=_FINISH_SECONDS,
        silent=True,
        console="off",  # the output of a command belongs to its log, not to the run that happens to be open
    )
    # started here, so that a failure shows here and not in the middle of a fit
    run = wandb.init(**words, dir=str(folder), resume="allow", settings=settings)
    run.define_metric("*", step_metric="trainer/global_step")
    return WandbLogger(experiment=run, save_dir=folder, offline=offline)


def _give_up() -> None:
    """Forget a run that could not start or end: its id is free again, and the next run is one of its own."""
    with suppress(Exception):
        import wandb

        wandb.teardown(exit_code=1)


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
