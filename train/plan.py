"""Which members of a cell train together, fixed when the cell is begun.

The number of members that fit into one program depends on the memory allowed, and memory is no part of a cell: a
cell that is continued with another budget must not mix two ways to cut. So the cut is written down first. Later a
smaller budget cuts the programs that have not finished into more; finished ones, and larger budgets, change nothing.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ridgescope.train.ensemble import Member, split_programs
from ridgescope.train.errors import UserError
from ridgescope.train.files import read_json, write_json

_FILE = "programs.json"


def plan_programs(folder: Path, members: Sequence[Member], size: int) -> list[list[Member]]:
    """The members of each program: as planned before, or cut now into programs of at most ``size``; then written down.

    Raises ``UserError`` where a finished program holds other members than planned.
    """
    programs = _planned(folder, members, size)
    if sorted(_key(member) for program in programs for member in program) != sorted(map(_key, members)):
        raise UserError(f"{folder} was begun with other members; delete the folder or choose another output")
    for index in range(len(programs)):
        rest = programs[index]
        if len(rest) > size and finished(folder, index) is None:
            first, *others = split_programs(rest, size)
            programs[index] = first
            programs += others
            checkpoint_path(folder, index).unlink(missing_ok=True)
    for index, program in enumerate(programs):
        done = finished(folder, index)
        if done is not None and [_key(m) for m in program] != [(m["seed"], m["draw"], m["ridge"]) for m in done]:
            raise UserError(
                f"{folder / f'program-{index:03d}.json'} holds other members than {_FILE} plans; delete the folder"
            )
    write_json(folder / _FILE, [[asdict(member) for member in program] for program in programs])
    return programs


def finished(folder: Path, index: int) -> list[dict[str, Any]] | None:
    """The record of a finished program, or None."""
    path = folder / f"program-{index:03d}.json"
    return read_json(path) if path.exists() else None


def checkpoint_path(folder: Path, index: int) -> Path:
    return folder / f"checkpoint-{index:03d}.safetensors"


def _planned(folder: Path, members: Sequence[Member], size: int) -> list[list[Member]]:
    path = folder / _FILE
    if path.exists():
        return [[Member(**member) for member in program] for program in read_json(path)]
    # a folder begun by a version that wrote no plan: its programs came in order
    programs, index = [], 0
    while (done := finished(folder, index)) is not None:
        programs.append([Member(m["seed"], m["draw"], m["ridge"]) for m in done])
        index += 1
    taken = {_key(member) for program in programs for member in program}
    rest = [member for member in members if _key(member) not in taken]
    return programs + split_programs(rest, size)


def _key(member: Member) -> tuple[int, int, float]:
    return member.seed, member.draw, member.ridge
