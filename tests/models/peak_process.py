"""The peak memory of one kernel in a process of its own, for test_kernel_memory: KIND BUDGET FOLDER (or nothing)."""

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch

from ridgescope.models import CNN, MLP, empirical_ntk


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def main(kind: str, budget: float, folder: str) -> None:
    generator = torch.Generator().manual_seed(0)
    if kind == "mlp":  # the factors of all inputs take 52 MB, the kernel 36 MB
        model: MLP | CNN = MLP((64,), 10, width=128, depth=3, generator=generator, dtype=torch.float32)
        points = torch.randn(3000, 64, generator=generator)
    else:
        model = CNN((1, 14, 14), 3, width=16, depth=3, generator=generator, dtype=torch.float32)
        points = torch.randn(300, 1, 14, 14, generator=generator)
    empirical_ntk(model, None, points[:50], form="trace")  # what torch loads at first use is not the kernel's
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    kernel = empirical_ntk(model, None, points, form="trace", memory=budget, path=folder or None)
    print(json.dumps({"peak": _resident("VmHWM") - before, "kernel": 4 * kernel.numel()}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])
