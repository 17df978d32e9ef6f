"""A ladder of 384 networks trained to certified optima, then again under random SIGKILLs: time, and the same tables?

    OMP_NUM_THREADS=2 python benchmarks/kill_ladder.py whole FOLDER [--limit SECONDS]
    OMP_NUM_THREADS=2 python benchmarks/kill_ladder.py torn FOLDER [--kills 20] [--seed 0]
    python benchmarks/kill_ladder.py compare FOLDER

MLPs of 6 widths on digits, 2 sizes, 2 ridges, 4 seeds x 4 draws, all by ``ridgescope train -m``. ``torn`` starts the
same command in another folder and kills it, each time a random while after its first sign of life, until it has been
killed often enough; it can be called again to go on. ``compare`` prints both tables' digests and every difference.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd

LADDER = [
    "data=digits", "model=mlp", "model.width=16,32,64,128,256,512", "data.train_size=100,200", "ridges=[1e-2,1e-4]",
    "num_seeds=4", "num_draws=4", "design=crossed", "alpha=10", "checkpoint_every=5", "logging.wandb=disabled",
]  # fmt: skip


def start(output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ridgescope", "train", "-m", *LADDER, "name=ladder", f"output={output}"]
    return subprocess.Popen([*command, f"hydra.sweep.dir={output / 'hydra'}"], stderr=subprocess.DEVNULL)


def whole(folder: Path, limit: float) -> None:
    """One part of the ladder, ended by SIGTERM after ``limit`` seconds; called again it goes on."""
    log = folder / "whole.json"
    parts: list[dict[str, object]] = json.loads(log.read_text()) if log.exists() else []
    begun, load = time.monotonic(), os.getloadavg()[0]
    process = start(folder / "whole")
    with suppress(subprocess.TimeoutExpired):
        process.wait(limit)
    process.terminate()
    code, used = process.wait(), resource.getrusage(resource.RUSAGE_CHILDREN)
    parts.append(
        {
            "exit": code,
            "seconds": round(time.monotonic() - begun, 1),
            "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
            "peak_memory_GB": round(used.ru_maxrss / 1e6, 2),
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "load_before_and_after": [round(load, 1), round(os.getloadavg()[0], 1)],
        }
    )
    log.write_text(json.dumps(parts))
    print(parts[-1])


def torn(folder: Path, kills: int, seed: int) -> None:
    """Kills are spread so that about 6/5 of them fit into the time that the whole ladder took."""
    log = folder / "kills.json"
    done: list[dict[str, object]] = json.loads(log.read_text()) if log.exists() else []
    random.seed(seed + len(done))
    parts = json.loads((folder / "whole.json").read_text())
    longest = 2 * sum(part["seconds"] for part in parts) / (1.2 * kills)
    while len(done) < kills:
        process, after = start(folder / "torn"), random.uniform(0, longest)
        before = _newest(folder / "torn")
        while process.poll() is None and _newest(folder / "torn") == before:
            time.sleep(0.05)
        alive = time.monotonic()
        while process.poll() is None and time.monotonic() < alive + after:
            time.sleep(0.01)
        if process.poll() is not None:
            sys.exit(f"the ladder ended with status {process.poll()} after {len(done)} kills: too few")
        process.kill()
        process.wait()
        done.append({"seconds_alive": round(after, 2)} | _standing(folder / "torn"))
        log.write_text(json.dumps(done))
        print(done[-1], flush=True)
    print("exit", start(folder / "torn").wait())


def _newest(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.glob("ladder/cells/*/*")), default=0.0)


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
    ours, theirs = (table(folder / name) for name in ("whole", "torn"))
    parts = json.loads((folder / "whole.json").read_text())
    print(*parts, sep="\n")
    print({name: round(sum(part[name] for part in parts), 1) for name in ("seconds", "processor_seconds")})
    print(ours.groupby("cell")[["steps", "optimality_gap"]].max().assign(networks=ours.groupby("cell").size()))
    for name, frame in (("whole", ours), ("torn", theirs)):
        digest = hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()[:16]
        print(f"{name}: {len(frame)} networks, {dict(frame['status'].value_counts())}, table {digest}")
    print(ours.compare(theirs) if len(ours) == len(theirs) else "different lengths")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["whole", "torn", "compare"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=3600.0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.part == "whole":
        whole(options.folder, options.limit)
    elif options.part == "torn":
        torn(options.folder, options.kills, options.seed)
    else:
        compare(options.folder)


if __name__ == "__main__":
    main()
