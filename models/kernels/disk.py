"""A kernel on disk that grows tile by tile, survives being killed, and is checked before it is believed.

    folder/kernel.json            whose kernel this is, its shape and its tiles; the checksum of each once all are there
    folder/tiles-RANK.jsonl       the checksum of each finished tile, a line appended after its numbers are written
    folder/kernel.part            the numbers while tiles are missing
    folder/kernel.safetensors     the same file, renamed, when none is: one tensor "kernel"

Tiles are written in place, without mapping the file: a full disk is then an error and not a dead process.
"""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ridgescope.models.kernels.structured.layout import Layout, Tile
from ridgescope.sizes import format_size

FORMAT = 1
NAMES = {torch.float32: "F32", torch.float64: "F64"}  # torch's to safetensors'
_NUMPY: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Head:
    """``blocks`` rows for each input (output-major), so the matrix is ``blocks rows`` by ``blocks columns``."""

    identity: str
    dtype: str
    blocks: int
    layout: Layout
    facts: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        return self.blocks * self.layout.rows, self.blocks * self.layout.columns

    @property
    def bytes(self) -> int:
        return self.shape[0] * self.shape[1] * _NUMPY[self.dtype].itemsize

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT} | asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> "Head":
        layout = Layout(**content["layout"])
        return Head(content["identity"], content["dtype"], content["blocks"], layout, content["facts"])


class DiskKernel:
    """One folder. Only one process begins, checks and finishes it; any number write tiles."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whole, self.part = folder / "kernel.safetensors", folder / "kernel.part"
        self._description = folder / "kernel.json"

    def head(self) -> Head | None:
        """None where nothing was begun, or where the description of what was is damaged."""
        try:
            content = json.loads(self._description.read_text())
            if content["format"] == FORMAT:
                return Head.from_json(content)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        raise ValueError(
            f"{self.folder} holds a kernel of format {content['format']}, here is {FORMAT}; choose another path"
        )

    def exists(self) -> bool:
        return self.part.exists() or self.whole.exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time; a second one waits, and then finds the work done."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(
                    f"{self.folder} is being computed by another process: waiting for it", file=sys.stderr, flush=True
                )
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def begin(self, head: Head) -> None:
        """Reserve the disk, in place of a kernel whose description is damaged."""
        if self.whole.exists() and not self._description.exists():
            raise ValueError(f"{self.whole} is not a kernel of ours; choose another path")
        self.clear()
        free = shutil.disk_usage(self.folder).free
        if head.bytes > free:
            raise ValueError(
                f"path={str(self.folder)!r} has {format_size(free)} free and the {head.shape[0]} x {head.shape[1]} "
                f"kernel takes {format_size(head.bytes)}; choose another disk, fewer inputs or form='trace'"
            )
        header = _header(head)
        with self.part.open("wb") as handle:
            handle.write(header)
            handle.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle.fileno(), 0, len(header) + head.bytes)
            else:
                handle.truncate(len(header) + head.bytes)
        self._describe(head, None)

    def clear(self) -> None:
        """Remove the kernel, and nothing that is not one."""
        for path in (self._description, self.whole, self.part, *self.folder.glob("tiles-*.jsonl")):
            path.unlink(missing_ok=True)

    def write(self, head: Head, tile: Tile, kernel: Tensor, rank: int) -> None:
        """``kernel`` (blocks, rows, blocks, columns) into its place and, off the diagonal, its mirror image."""
        digest = hashlib.sha256()
        handle = os.open(self.part, os.O_WRONLY)
        try:
            for offset, rows in self._pieces(head, tile, kernel):
                stride = head.shape[1] * rows.itemsize
                for i, row in enumerate(rows):
                    os.pwrite(handle, row.data, offset + i * stride)
                digest.update(rows.data)
        finally:
            os.close(handle)
        line = json.dumps({"tile": tile.index, "sha256": digest.hexdigest()})
        with (self.folder / f"tiles-{rank}.jsonl").open("a") as record:
            record.write("\n" + line + "\n")  # a line that a kill cut short must not swallow this one

    def _pieces(self, head: Head, tile: Tile, kernel: Tensor | None) -> Iterator[tuple[int, Array]]:
        """Contiguous rows and the offset of the first in the file: of ``kernel``, or empty to be read into."""
        dtype = _NUMPY[head.dtype]
        start, rows, columns = len(_header(head)), head.layout.rows, head.layout.columns
        p, q = tile.rows, tile.columns
        mirrored = slice(p.start, q.start if tile.square else p.stop) if head.layout.symmetric else slice(0, 0)
        for c in range(head.blocks):
            for e in range(head.blocks):
                for block, (a, i), (b, j) in (
                    (None if kernel is None else kernel[c, :, e], (c, p), (e, q)),
                    (
                        None if kernel is None else kernel[c, : mirrored.stop - mirrored.start, e].T,
                        (e, q),
                        (c, mirrored),
                    ),
                ):
                    if i.start == i.stop or j.start == j.stop:
                        continue
                    shape = (i.stop - i.start, j.stop - j.start)
                    values = np.empty(shape, dtype) if block is None else _as_numpy(block)
                    first = (a * rows + i.start) * head.blocks * columns + b * columns + j.start
                    yield start + first * dtype.itemsize, values

    def _checksum(self, head: Head, tile: Tile, handle: int) -> str:
        digest = hashlib.sha256()
        for offset, rows in self._pieces(head, tile, None):
            stride = head.shape[1] * rows.itemsize
            for i, row in enumerate(rows):
                if os.preadv(handle, [row.data], offset + i * stride) != row.nbytes:
                    return "cut short"
            digest.update(rows.data)
        return digest.hexdigest()

    def intact(self, head: Head) -> set[int]:
        """The finished tiles whose numbers are still those that were written."""
        path, sums = (self.whole, self._sums()) if self.whole.exists() else (self.part, self._recorded())
        tiles = head.layout.tiles()
        with path.open("rb") as handle:
            if handle.read(len(_header(head))) != _header(head):
                return set()
            return {tile.index for tile in tiles if self._checksum(head, tile, handle.fileno()) == sums.get(tile.index)}

    def reopen(self, head: Head, intact: set[int]) -> None:
        """Take back a finished kernel of which some tiles are damaged, as if they had never been computed."""
        sums = self._sums() if self.whole.exists() else self._recorded()
        lines = [json.dumps({"tile": index, "sha256": sums[index]}) for index in sorted(intact)]
        source = self.whole if self.whole.exists() else self.part
        with source.open("r+b") as handle:
            header = _header(head)
            handle.write(header)
            handle.truncate(len(header) + head.bytes)
        mine = self.folder / "tiles-0.jsonl"
        _replace(mine, "\n".join([*lines, ""]))
        for path in set(self.folder.glob("tiles-*.jsonl")) - {mine}:
            path.unlink()
        os.replace(source, self.part)
        self._describe(head, None)

    def finish(self, head: Head) -> None:
        sums = self._recorded()
        with self.part.open("r+b") as handle:
            os.fsync(handle.fileno())
        self._describe(head, [sums[tile.index] for tile in head.layout.tiles()])
        os.replace(self.part, self.whole)
        for path in self.folder.glob("tiles-*.jsonl"):
            path.unlink()

    def read(self, head: Head) -> Tensor:
        """The matrix, mapped from the file: pages are read when they are used, and writing to it changes no file."""
        dtype = _NUMPY[head.dtype]
        return torch.from_numpy(np.memmap(self.whole, dtype, mode="c", offset=len(_header(head)), shape=head.shape))

    def _recorded(self) -> dict[int, str]:
        sums: dict[int, str] = {}
        for path in sorted(self.folder.glob("tiles-*.jsonl")):
            for line in path.read_text(errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    sums[int(entry["tile"])] = str(entry["sha256"])
                except (ValueError, KeyError, TypeError):  # empty, or cut short by a kill
                    continue
        return sums

    def _sums(self) -> dict[int, str]:
        try:
            return dict(enumerate(json.loads(self._description.read_text())["sha256"]))
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _describe(self, head: Head, sums: list[str] | None) -> None:
        content = head.to_json() | ({} if sums is None else {"sha256": sums})
        _replace(self._description, json.dumps(content, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    """The old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def _as_numpy(block: Tensor) -> Array:
    return block.cpu().contiguous().numpy()


def _header(head: Head) -> bytes:
    """Of a safetensors file with the one tensor; what follows is aligned to 64 bytes."""
    entry = {"dtype": head.dtype, "shape": list(head.shape), "data_offsets": [0, head.bytes]}
    text = json.dumps({"__metadata__": {"ridgescope": head.identity}, "kernel": entry}).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text
