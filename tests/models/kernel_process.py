"""One process of a group that computes a kernel, for test_kernel_memory: RANK SIZE MEETING FOLDER KILL_AFTER."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ridgescope.models import MLP, empirical_ntk
from ridgescope.models.kernels.disk import DiskKernel


def compute(folder: Path | None, group: "dist.ProcessGroup | None", inputs: int = 1500, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    model = MLP((16,), 3, width=32, depth=2, generator=generator, dtype=torch.float32)
    x = scale * torch.randn(1500, 16, generator=generator)[:inputs]
    where = {} if folder is None else {"path": folder, "memory": "40MB"}
    return empirical_ntk(model, None, x, form="trace", group=group, **where)


def checksum(kernel: Tensor) -> str:
    return hashlib.sha256(kernel.numpy().tobytes()).hexdigest()


def main(rank: int, size: int, meeting: str, folder: str, kill_after: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    group = dist.group.WORLD
    write, written = DiskKernel.write, 0

    def killing(*arguments):  # type: ignore[no-untyped-def]
        nonlocal written
        if written == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)
        written += 1

    DiskKernel.write = killing  # type: ignore[method-assign]
    kernel = compute(Path(folder), group)
    gathered = compute(None, group, inputs=300)
    difference = float((gathered - kernel[:300, :300]).norm() / gathered.norm())
    refusal = ""
    try:  # one of the processes has infinite inputs
        compute(None, group, inputs=10, scale=float("inf") if rank == 1 else 1.0)
    except (ValueError, RuntimeError) as error:
        refusal = str(error)
    dist.destroy_process_group()
    print(json.dumps({"written": written, "sum": checksum(kernel), "gathered": difference, "refusal": refusal}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
