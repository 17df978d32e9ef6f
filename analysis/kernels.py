"""``ridgescope kernels``: what a store of kernels holds, and cleaning it."""

import datetime
from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ridgescope.analysis.config import register
from ridgescope.models import KernelStore
from ridgescope.models.kernels.store import Entry
from ridgescope.sizes import format_size
from ridgescope.train.config import checked
from ridgescope.train.entry import one_line_errors
from ridgescope.train.errors import UserError
from ridgescope.train.progress import say


def open_store(folder: str | None, limit: str | None) -> KernelStore | None:
    """None without a folder; ``UserError`` for a limit that is no size."""
    if folder is None:
        return None
    try:
        return KernelStore(folder, limit)
    except ValueError as error:
        raise UserError(f"kernels_limit: {error}") from None


@hydra.main(version_base="1.3", config_path="pkg://ridgescope.conf", config_name="kernels")
@one_line_errors
def kernels(config: DictConfig) -> None:
    plain = checked(config)
    folder = Path(plain["folder"])
    if not folder.is_dir():
        raise UserError(f"folder={folder} does not exist; give the folder of a store")
    store = KernelStore(folder)
    entries = store.entries()
    damaged = {entry.name for entry in entries if entry.head is None or (plain["check"] and entry.damaged())}
    _print(entries, damaged)
    gone = _chosen(entries, damaged, plain["remove"])
    for entry in gone:
        store.remove(entry)
    if plain["remove"] is not None:
        say(f"removed {len(gone)} kernels, {format_size(sum(entry.bytes for entry in gone))}")


def _chosen(entries: list[Entry], damaged: set[str], remove: str | None) -> list[Entry]:
    if remove is None:
        return []
    if remove == "all":
        return entries
    if remove == "unfinished":
        return [entry for entry in entries if not entry.finished]
    if remove == "damaged":
        return [entry for entry in entries if entry.name in damaged]
    named = [entry for entry in entries if entry.name.startswith(remove)]
    if not named:
        raise UserError(f"remove={remove} is no kernel here; choose a name, all, unfinished or damaged")
    return named


def _print(entries: list[Entry], damaged: set[str]) -> None:
    table = Table("kernel", "network", "form", "shape", "size", "last used", "state")
    for entry in sorted(entries, key=lambda entry: -entry.used):
        head = entry.head
        state = "damaged" if entry.name in damaged else "whole" if entry.finished else "unfinished"
        facts = ["?", "?", "?"]
        if head is not None:
            facts = [head.facts["model"], head.facts["form"], f"{head.shape[0]} x {head.shape[1]}"]
        used = datetime.datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
        table.add_row(entry.name[:19], *facts, format_size(entry.bytes), used, state)
    Console().print(table)
    print(f"{len(entries)} kernels, {format_size(sum(entry.bytes for entry in entries))}")


register()
