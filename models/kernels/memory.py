"""How much memory a kernel may take: what was asked for, or a share of what is free."""

import os
from pathlib import Path

import torch

from ridgescope.sizes import parse_size

SHARE = 0.5  # of what is free, where nothing is asked for

# Unasked, no more than this is used beside the kernel itself: more would save few passes through the network, and
# with a fixed number the tiles, and with them the last bits, are the same from run to run.
WORKING = 1.5e9

LARGEST_REUSED = 2**25 - 2**16  # just below glibc's own limit


def budget(memory: str | int | float | None, result: int, device: torch.device) -> float:
    """Bytes a kernel may take, ``result`` bytes of it the kernel itself."""
    if memory is None:
        return min(SHARE * free_memory(device), result + WORKING)
    size = float(parse_size(memory) if isinstance(memory, str) else memory)
    if not 0 < size < float("inf"):
        raise ValueError(f"memory={memory!r} must be positive; write it like '3GB', or pass a number of bytes")
    return size


def reuse_freed(size: float, device: torch.device) -> None:
    """Let arrays of up to ``size`` bytes (and 32 MB) be made from memory that was freed before and not from new pages.

    glibc maps an array above a threshold afresh each time, and touching its pages can take longer than what a layer
    does with them. The threshold becomes the largest mapped array ever freed, see mallopt(3), so one is: nothing is
    written to it. Up to twice that size of what is freed then stays with the process.
    """
    if device.type == "cpu":
        torch.empty(int(min(size, LARGEST_REUSED)), dtype=torch.uint8)


def free_memory(device: torch.device) -> float:
    """Bytes that can be had without swapping, within the limits of this process's container or job."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # what torch holds in reserve without using it can be had too
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_of_machine(), _of_container())


def _of_machine() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(float(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: half of what is installed, as nobody says what is free
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def _of_container() -> float:
    """Control groups, version 2: the tightest limit on the way to the root."""
    try:
        group = Path("/proc/self/cgroup").read_text().splitlines()[-1].split("::")[1].strip("/")
    except (OSError, IndexError):
        return float("inf")
    folder, free = Path("/sys/fs/cgroup") / group, float("inf")
    while folder != folder.parent and folder.parts[:4] == ("/", "sys", "fs", "cgroup"):
        try:
            limit, used = (folder / "memory.max").read_text().strip(), float((folder / "memory.current").read_text())
            cache = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())["inactive_file"]
            if limit != "max":
                free = min(free, float(limit) - used + float(cache))
        except (OSError, KeyError, ValueError):
            pass
        folder = folder.parent
    return free
