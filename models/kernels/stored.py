"""A kernel computed to disk: begun, gone on with, or found finished."""

import os
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ridgescope.models.kernels.announce import Announcer
from ridgescope.models.kernels.disk import NAMES, DiskKernel, Head
from ridgescope.models.kernels.identity import kernel_identity
from ridgescope.models.kernels.memory import budget
from ridgescope.models.kernels.store import KernelStore
from ridgescope.models.kernels.structured.factors import settle
from ridgescope.models.kernels.structured.forms import Factor
from ridgescope.models.kernels.structured.layout import Layout, Tile, deal, make_layout
from ridgescope.models.kernels.structured.plan import Plan
from ridgescope.models.kernels.structured.tiles import compute_tiles
from ridgescope.models.kernels.team import Team
from ridgescope.sizes import format_size

Settled = tuple[Plan, list[Factor]]


def stored_kernel(
    plan: Plan,
    x1: Tensor,
    x2: Tensor | None,
    path: str | Path | KernelStore,
    memory: str | int | float | None,
    team: Team,
) -> Tensor:
    """The kernel in its folder, every tile of it computed now or checked against its checksum."""
    room = min(team.everyones(budget(memory, 0, x1.device)))
    identity = identity_of(plan, x1, x2)
    if len(set(team.everyones(identity))) > 1:
        raise ValueError("the processes of the group hold different weights or inputs; give all of them the same")
    folder = path.place(identity) if isinstance(path, KernelStore) else Path(path)
    disk = DiskKernel(folder)
    try:
        with ExitStack() as stack:
            found, settled = None, None
            with team.together():
                if team.rank == 0:
                    stack.enter_context(disk.locked())
                    found, settled = _prepare(disk, plan, identity, room, x1, x2, team.size)
            head, done = next(answer for answer in team.everyones(found) if answer is not None)
            if not disk.whole.exists():
                with team.together():
                    settled = settled or settle(plan, x1, lambda _: (0, head.layout.chunk))
                    _compute(disk, settled, head, done, x1, x2, team)
                with team.together():
                    if team.rank == 0:
                        _finish(disk, head, team)
            kernel = disk.read(head)
            if team.rank == 0 and isinstance(path, KernelStore):
                path.make_room(folder)
            return kernel
    except OSError as error:
        raise ValueError(
            f"cannot write {error.filename or folder} ({error.strerror or error}); free space or choose another path"
        ) from error


def identity_of(plan: Plan, x1: Tensor, x2: Tensor | None) -> str:
    options = {
        "form": "trace" if plan.trace else "full",
        "outputs": plan.outputs,
        "parameters": plan.chosen,
        "dtype": str(plan.dtype),
    }
    return kernel_identity(plan.model, plan.params, (x1, x2), options)


def _prepare(
    disk: DiskKernel, plan: Plan, identity: str, room: float, x1: Tensor, x2: Tensor | None, shared: int
) -> tuple[tuple[Head, set[int]], Settled | None]:
    """The description of the kernel and the tiles that need not be computed; for a new one what `settle` found."""
    os.utime(disk.folder)  # wanted now: a store removes what was not wanted for longest
    head = disk.head()
    if head is not None and head.identity != identity:
        raise ValueError(
            f"path={str(disk.folder)!r} holds another kernel ({head.facts['model']}, {head.shape[0]} x "
            f"{head.shape[1]}), of other weights, inputs, options or code; choose another path or delete the folder"
        )
    if head is None:
        rows, columns = len(x1), len(x1 if x2 is None else x2)
        size = plan.blocks**2 * rows * columns * plan.dtype.itemsize

        def layout_of(plan: Plan) -> Layout:
            return make_layout(
                plan, rows, columns, symmetric=x2 is None, budget=room, result=size, stored=True, shared=shared
            )

        settled = settle(plan, x1, lambda plan: layout_of(plan).sizes)
        layout = layout_of(settled[0])
        facts = {"model": type(plan.model).__name__, "form": "trace" if plan.trace else "full"}
        head = Head(identity, NAMES[plan.dtype], plan.blocks, layout, facts)
        disk.begin(head)
        return (head, set()), settled
    if not disk.exists():
        disk.begin(head)
        return (head, set()), None
    done = disk.intact(head)
    if not (disk.whole.exists() and len(done) == len(head.layout.tiles())):
        disk.reopen(head, done)
        if head.layout.held > room:
            raise ValueError(
                f"path={str(disk.folder)!r} was begun with tiles that take {format_size(head.layout.held)} of memory; "
                f"pass memory={format_size(head.layout.held)!r} to go on, or delete the folder"
            )
    return (head, done), None


def _compute(
    disk: DiskKernel, settled: Settled, head: Head, done: set[int], x1: Tensor, x2: Tensor | None, team: Team
) -> None:
    plan, first = settled
    missing = [tile for tile in head.layout.tiles() if tile.index not in done]
    tiles = deal(missing, team.size)[team.rank]
    announcer = Announcer(plan, head.layout, tiles, stored=head.bytes, quiet=team.rank > 0)
    latest: list[Tensor] = []

    def target(tile: Tile) -> list[Tensor]:
        shape = [plan.blocks, tile.rows.stop - tile.rows.start, plan.blocks, tile.columns.stop - tile.columns.start]
        latest[:] = [torch.zeros(shape, dtype=plan.dtype, device=x1.device)]
        return latest

    for tile in compute_tiles(plan, head.layout, x1, x2, tiles, target, first):
        if plan.trace:
            latest[0] /= plan.num_outputs
        disk.write(head, tile, latest[0], team.rank)
        latest.clear()
        announcer.advance(tile)


def _finish(disk: DiskKernel, head: Head, team: Team) -> None:
    # what other nodes wrote may not have reached this one
    if team.size > 1 and len(disk.intact(head)) < len(head.layout.tiles()):
        raise RuntimeError(
            f"tiles that other ranks wrote are not in {disk.folder}; put it on a disk that all nodes share"
        )
    disk.finish(head)
