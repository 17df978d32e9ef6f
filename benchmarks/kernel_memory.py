"""Does a kernel that does not fit its memory budget stay within it, and does a killed run end with the same bits?

    python benchmarks/kernel_memory.py [--inputs 10000] [--width 512] [--memory 350MB] [--folder FOLDER]

The trace kernel of an MLP (784 inputs, 3 hidden layers, 10 outputs, float32) is computed to disk, once in peace and
once killed by SIGKILL at a third of its tiles and continued; the files are compared byte for byte. Each run is a
process of its own. Its peak is what the kernel adds to the process (VmHWM, reset before, less VmRSS then), after a
small kernel has made torch load what it loads at first use.

One process of it, which is also what several processes share under srun or torchrun:

    srun --ntasks=4 python benchmarks/kernel_memory.py --compute FOLDER --memory 300MB
"""

import argparse
import ctypes
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from ridgescope.models import MLP, empirical_ntk


def compute(folder: Path, inputs: int, width: int, memory: str) -> dict[str, float]:
    group = join()
    generator = torch.Generator().manual_seed(0)
    model = MLP((784,), 10, width=width, depth=3, activation="gelu", generator=generator, dtype=torch.float32)
    x = torch.randn(inputs, 784, generator=generator)
    empirical_ntk(model, None, x[:300], form="trace")
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or the peak would hide in pages that the small kernel left behind
    Path("/proc/self/clear_refs").write_text("5")
    before, start = resident("VmRSS"), time.perf_counter()
    empirical_ntk(model, None, x, form="trace", memory=memory, path=folder, group=group)
    return {"seconds": time.perf_counter() - start, "peak": resident("VmHWM") - before, "process": resident("VmHWM")}


def join() -> "dist.ProcessGroup | None":
    """All processes that srun or torchrun started with this one."""
    environment = os.environ
    size = int(environment.get("WORLD_SIZE", environment.get("SLURM_NTASKS", 1)))
    if size == 1:
        return None
    from lightning.fabric import Fabric

    nodes = int(environment.get("SLURM_NNODES", environment.get("GROUP_WORLD_SIZE", 1)))
    accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    Fabric(accelerator=accelerator, devices=size // nodes, num_nodes=nodes, strategy="ddp").launch()
    return dist.group.WORLD


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def start(folder: Path, memory: str, arguments: argparse.Namespace) -> subprocess.Popen[str]:
    words = ["--compute", folder, "--memory", memory, "--inputs", arguments.inputs, "--width", arguments.width]
    return subprocess.Popen([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run ended with status {process.returncode}")
    return dict(json.loads(out))


def kill_at_a_third(process: subprocess.Popen[str], folder: Path) -> tuple[int, int]:
    """Finished tiles at the time of death, and all tiles."""
    record, description = folder / "tiles-0.jsonl", folder / "kernel.json"
    total = 0
    while process.poll() is None:
        if not total and description.exists():
            layout = json.loads(description.read_text())["layout"]
            total = count_tiles(layout)
        done = record.read_text().count("sha256") if record.exists() else 0
        if total and done >= total / 3:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return record.read_text().count("sha256"), total
        time.sleep(0.02)
    raise SystemExit("it finished before it could be killed: take more inputs")


def count_tiles(layout: dict[str, int]) -> int:
    from ridgescope.models.kernels.structured.layout import Layout

    return len(Layout(**layout).tiles())  # type: ignore[arg-type]


def checksum(folder: Path) -> str:
    with (folder / "kernel.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--memory", nargs="+", default=["350MB"])
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--compute", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.compute is not None:
        print(
            json.dumps(compute(arguments.compute, arguments.inputs, arguments.width, arguments.memory[0])), flush=True
        )
        if dist.is_initialized():  # gloo's threads hold tensors: at the interpreter's end they may abort it
            dist.destroy_process_group()
        return
    threads, version = torch.get_num_threads(), platform.python_version()
    print(f"torch {torch.__version__}, Python {version}, {threads} threads, load {os.getloadavg()[0]:.1f}")
    print("| budget | kernel | tiles | time | peak added | peak of process | killed after | resumed in | same bytes |")
    print("|---|---|---|---|---|---|---|---|---|")
    for memory in arguments.memory:
        parent = Path(tempfile.mkdtemp(dir=arguments.folder))
        try:
            whole = finish(start(parent / "whole", memory, arguments))
            process = start(parent / "killed", memory, arguments)
            done, total = kill_at_a_third(process, parent / "killed")
            resumed = finish(start(parent / "killed", memory, arguments))
            same = checksum(parent / "whole") == checksum(parent / "killed")
            size = (parent / "whole" / "kernel.safetensors").stat().st_size
            peak, process_peak = (max(whole[key], resumed[key]) / 1e6 for key in ("peak", "process"))
            print(
                f"| {memory} | {size / 1e6:.0f} MB | {total} | {whole['seconds']:.0f} s | {peak:.0f} MB | "
                f"{process_peak:.0f} MB | {done} tiles | {resumed['seconds']:.0f} s | {'yes' if same else 'NO'} |",
                flush=True,
            )
        finally:
            shutil.rmtree(parent)


if __name__ == "__main__":
    main()
