"""A ladder of 384 networks trained to certified optima, then again under random SIGKILLs: time, and the same tables?

    OMP_NUM_THREADS=1 python benchmarks/kill_ladder.py whole FOLDER [--widths 16 32 64 128 256 512]
    OMP_NUM_THREADS=1 python benchmarks/kill_ladder.py torn FOLDER [--kills 20] [--seed 0] [--widths ...]
    python benchmarks/kill_ladder.py compare FOLDER

MLPs of 6 widths on digits, 2 sizes, 2 ridges, 4 seeds x 4 draws, by ``ridgescope train -m``; two calls, each with half
the widths, share two cores. ``torn`` runs the same command in another folder, kills it after a random processor time,
starts it again, until that has happened often enough, then lets it end. ``compare`` prints times, statuses, a digest of
each table, and every difference. The command runs in forks of a process that has imported torch already.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pandas as pd

from ridgescope.__main__ import main as command

LADDER = [
    "train", "-m", "data=digits", "model=mlp", "data.train_size=100,200", "ridges=[1e-2,1e-4]", "num_seeds=4",
    "num_draws=4", "design=crossed", "alpha=10", "checkpoint_every=5", "memory=800MB",
    "logging.wandb=disabled", "name=ladder",
]  # fmt: skip


def start(output: Path, widths: list[int]) -> int:
    """The number of a process that trains the ladder."""
    child = os.fork()
    if child:
        return child
    place = [f"model.width={','.join(map(str, widths))}", f"output={output}"]
    sys.argv = ["ridgescope", *LADDER, *place]
    code = 1
    try:
        code = command()
    finally:
        os._exit(code)


def whole(folder: Path, widths: list[int]) -> None:
    begun, load = time.monotonic(), os.getloadavg()[0]
    _, status, used = os.wait4(start(folder / "whole", widths), 0)
    report = {
        "widths": widths,
        "exit": os.waitstatus_to_exitcode(status),
        "seconds": round(time.monotonic() - begun, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_GB": round(used.ru_maxrss / 1e6, 2),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    _log(folder, "whole", widths, [report])
    print(report)


def torn(folder: Path, widths: list[int], kills: int, seed: int, longest: float) -> None:
    """``longest``: processor seconds to the last possible kill of a process; the time is uniform below."""
    generator, done = random.Random(seed), []
    while len(done) < kills:
        child, after = start(folder / "torn", widths), generator.uniform(0, longest)
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if _processor_seconds(child) >= after:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                break
            time.sleep(0.01)
        else:
            sys.exit(f"the ladder ended after {len(done)} kills: too few, lower --longest")
        done.append({"widths": widths, "processor_seconds": round(after, 2)} | _standing(folder / "torn"))
        _log(folder, "kills", widths, done)
        print(done[-1], flush=True)
    print("exit", os.waitstatus_to_exitcode(os.waitpid(start(folder / "torn", widths), 0)[1]))


def _log(folder: Path, name: str, widths: list[int], content: list[dict[str, object]]) -> None:
    (folder / f"{name}-{'-'.join(map(str, widths))}.json").write_text(json.dumps(content))


def _processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime, proc(5)


def _standing(folder: Path) -> dict[str, int]:
    cells = folder / "ladder" / "cells"
    patterns = {"cells_done": "*/done.json", "programs_done": "*/program-*.json", "checkpoints": "*/checkpoint-*"}
    return {name: len(list(cells.glob(pattern))) for name, pattern in patterns.items()}


def table(folder: Path) -> pd.DataFrame:
    """One row per network: its cell, its record, and a digest of its program's weights."""
    rows = []
    for path in sorted(folder.glob("ladder/cells/*/program-*.json")):
        weights = hashlib.sha256(path.with_suffix(".safetensors").read_bytes()).hexdigest()[:16]
        rows += [{"cell": path.parent.name, **member, "weights": weights} for member in json.loads(path.read_text())]
    return pd.DataFrame(rows)


def compare(folder: Path) -> None:
    for name in ("whole", "kills"):
        print(
            *(row for path in sorted(folder.glob(f"{name}-*.json")) for row in json.loads(path.read_text())), sep="\n"
        )
    ours, theirs = (table(folder / name) for name in ("whole", "torn"))
    print(ours.groupby("cell")[["steps", "optimality_gap"]].max().assign(networks=ours.groupby("cell").size()))
    for name, frame in (("whole", ours), ("torn", theirs)):
        digest = hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()[:16]
        print(f"{name}: {len(frame)} networks, {frame['status'].value_counts().to_dict()}, table {digest}")
    print(ours.compare(theirs) if len(ours) == len(theirs) else "different lengths")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["whole", "torn", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 32, 64, 128, 256, 512])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    import ridgescope.train.main  # noqa: F401  (torch and Lightning, before the forks)

    if options.part == "whole":
        whole(options.folder, options.widths)
    elif options.part == "torn":
        torn(options.folder, options.widths, options.kills, options.seed, options.longest)
    else:
        compare(options.folder)


if __name__ == "__main__":
    main()
