"""One process of a group that computes a kernel, for test_kernel_memory: RANK SIZE MEETING FOLDER KILL_AFTER."""

import hashlib
import json
import os
import signal
import sys

import torch
import torch.distributed as dist

from ridgescope.models import MLP, empirical_ntk
from ridgescope.models.kernels.disk import DiskKernel


def main(rank: int, size: int, meeting: str, folder: str, kill_after: int) -> None:
    torch.set_num_threads(1)
    group = None
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        group = dist.group.WORLD
    generator = torch.Generator().manual_seed(0)
    model = MLP((16,), 3, width=32, depth=2, generator=generator, dtype=torch.float32)
    x = torch.randn(1500, 16, generator=generator)
    write, written = DiskKernel.write, 0

    def killing(*arguments):  # type: ignore[no-untyped-def]
        nonlocal written
        if written == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)
        written += 1

    DiskKernel.write = killing  # type: ignore[method-assign]
    kernel = empirical_ntk(model, None, x, form="trace", memory="40MB", path=folder, group=group)
    head = DiskKernel(__import__("pathlib").Path(folder)).head()
    answer = {
        "written": written,
        "tiles": len(head.layout.tiles()),
        "sum": hashlib.sha256(kernel.numpy().tobytes()).hexdigest(),
    }
    if group is not None:
        gathered = empirical_ntk(model, None, x[:300], form="trace", group=group)
        answer["gathered"] = float((gathered - kernel[:300, :300]).norm() / gathered.norm())
        try:  # rank 1 alone meets an infinite weight
            empirical_ntk(model, None, x[:10] / (1 - rank), group=group)
        except (ValueError, RuntimeError) as error:
            answer["refusal"] = str(error)
        dist.destroy_process_group()
    print(json.dumps(answer))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
