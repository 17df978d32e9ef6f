"""Kernels kept for later, each in a subfolder named by its content (`ridgescope.models.kernels.identity`).

What is asked for twice is computed once; after a change of weights, inputs, options or code the name is another
one and nothing old is used. Subfolders are independent: a damaged one is repaired when it is asked for, and the others
are not touched.
"""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ridgescope.models.kernels.disk import DiskKernel, Head
from ridgescope.sizes import parse_size


@dataclass(frozen=True)
class Entry:
    """``head`` is None where the description is damaged; ``used`` in seconds since 1970."""

    folder: Path
    head: Head | None
    finished: bool
    bytes: int
    used: float

    @property
    def name(self) -> str:
        return self.folder.name

    def damaged(self) -> bool:
        """Reads all of it: whether a number has changed since it was written."""
        if self.head is None:
            return True
        disk = DiskKernel(self.folder)
        return self.finished and len(disk.intact(self.head)) < len(self.head.layout.tiles())


class KernelStore:
    """Pass it as ``path`` to `empirical_ntk`. Beyond ``limit`` ("20GB", or bytes) the least recently used are removed.

    >>> import tempfile, torch
    >>> from ridgescope.models import empirical_ntk
    >>> store, net = KernelStore(tempfile.mkdtemp()), torch.nn.Linear(3, 1)
    >>> kernel = empirical_ntk(net, None, torch.eye(3), path=store)
    >>> [entry.head.shape for entry in store.entries()]
    [(3, 3)]
    """

    def __init__(self, folder: str | Path, limit: str | int | float | None = None) -> None:
        self.folder = Path(folder)
        self.limit = parse_size(limit) if isinstance(limit, str) else limit

    def place(self, identity: str) -> Path:
        return self.folder / f"kernel-{identity[:32]}"

    def make_room(self, folder: Path) -> None:
        """Make room for this kernel."""
        if self.limit is None:
            return
        entries = sorted(self.entries(), key=lambda entry: entry.used)
        total = sum(entry.bytes for entry in entries)
        for entry in entries:
            # an unfinished one may be another process's, at work
            if total > self.limit and entry.finished and entry.folder != folder:
                self.remove(entry)
                total -= entry.bytes

    def entries(self) -> list[Entry]:
        found = []
        for folder in sorted(self.folder.glob("kernel-*")):
            disk, head = DiskKernel(folder), None
            with suppress(ValueError):  # of another format: as useless as a damaged one
                head = disk.head()
            try:
                size = sum(path.stat().st_size for path in folder.iterdir())
                used = folder.stat().st_mtime
            except OSError:  # another process has just removed it
                continue
            found.append(Entry(folder, head, disk.whole.exists(), size, used))
        return found

    def remove(self, entry: Entry) -> None:
        """Whoever has the kernel mapped can go on reading it."""
        shutil.rmtree(entry.folder, ignore_errors=True)
