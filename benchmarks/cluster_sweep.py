"""Does a sweep on Slurm end as if nothing had happened? 200 cells, 10 made to fail, 10 killed, one resubmission.

    eval "$(.ci/local_slurm env)"; python benchmarks/cluster_sweep.py FOLDER [--cells 200] [--broken 10]

Half of the broken cells cannot make their folder (a file has its name), half get SIGKILL in the middle of training,
which takes the rest of their job with it. The table of networks must be that of one process without Slurm, to the bit.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from omegaconf import DictConfig

from ridgescope.train.config import cell_name, checked, register
from ridgescope.train.main import run_cell
from ridgescope.train.optimisers import SGD
from ridgescope.train.progress import quiet
from ridgescope.train.sweep import compose_cells

if TYPE_CHECKING:
    from ridgescope.train.training import EnsembleTraining

SCRIPT = Path(__file__).resolve()
COMMON = (
    "data=digits data.train_size=10 data.pool_size=60 data.test_size=20 model.width=8 ridges=[1e-1] num_seeds=1 "
    "num_draws=2 optimiser=sgd optimiser._target_=cluster_sweep.MortalSGD tolerance=1e-300 max_steps=40"
)
CLUSTER = ("cluster.cpus=1", "cluster.time=60", "cluster.mem=1500M", "cluster.analysis_mem=1500M")
CLUSTER += ("cluster.analysis_time=60", "infinite_draws=4", "logging.wandb=disabled")


@dataclass(frozen=True)
class MortalSGD(SGD):
    """Gradient descent that SIGKILL ends at step 20, once, where $VICTIMS holds a file with the name of its seed."""

    def build(self, training: "EnsembleTraining") -> torch.optim.Optimizer:
        optimiser = super().build(training)
        victim = Path(os.environ.get("VICTIMS", "/nowhere")) / str(training.members[0].seed)

        def die(*_: object) -> None:
            if training.step == 20 and victim.exists():
                victim.unlink()
                os.kill(os.getpid(), signal.SIGKILL)

        optimiser.register_step_pre_hook(die)
        return optimiser


def command(*words: str) -> str:
    line = [sys.executable, "-m", "ridgescope", *words]
    return subprocess.run(line, text=True, check=True, stdout=subprocess.PIPE).stdout


def counts() -> str:
    return command("status", "folder=runs/sweep").splitlines()[0].partition("; about")[0]


def wait(submission: str) -> float:
    """Seconds until the analysis of a submission, its last job, is gone from the queue."""
    start = time.monotonic()
    job = json.loads(Path(f"runs/sweep/submissions/{submission}/submission.json").read_text())["analysis"]
    while subprocess.run(["squeue", "-h", f"--jobs={job}"], capture_output=True, text=True).stdout.strip():
        time.sleep(2)
    return time.monotonic() - start


def undisturbed(sweep: str) -> None:
    """The same cells one after the other in this process, and their report."""
    for cell in planned(sweep, "undisturbed"):
        run_cell(cell)
    command("analyse", "folder=undisturbed/sweep", "infinite_draws=4", "logging.wandb=disabled")


def planned(sweep: str, output: str = "runs") -> list[DictConfig]:
    return compose_cells([*f"{COMMON} {sweep}".split(), "name=sweep", f"output={output}", "logging.wandb=disabled"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--broken", type=int, default=10, help="cells that fail, and as many that are killed")
    parser.add_argument("--undisturbed", action="store_true", help="only the one process")
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SCRIPT.parent), os.environ.get("PYTHONPATH", "")])
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    quiet()
    register()
    (given.folder / "victims").mkdir(parents=True, exist_ok=given.undisturbed)
    with chdir(given.folder):
        if given.undisturbed:
            undisturbed(f"seed=range(0,{given.cells})")
        else:
            disturbed(f"seed=range(0,{given.cells})", given.cells, given.broken)


def disturbed(sweep: str, num_cells: int, broken: int) -> None:
    alone = subprocess.Popen([sys.executable, str(SCRIPT), ".", "--cells", str(num_cells), "--undisturbed"])
    rng, per_job = random.Random(0), num_cells // broken
    names = [cell_name(checked(cell)) for cell in planned(sweep)]
    failing = rng.sample(range(num_cells), broken)
    Path("runs/sweep/cells").mkdir(parents=True)
    for index in failing:
        (Path("runs/sweep/cells") / names[index]).write_text("in the way")
    for job in range(broken):  # one of each job
        seed = rng.choice([s for s in range(job * per_job, (job + 1) * per_job) if s not in failing])
        (Path("victims") / str(seed)).touch()
    os.environ["VICTIMS"] = str(Path("victims").resolve())
    started = time.monotonic()
    settings = ("name=sweep", f"sweeps=['{sweep}']", f"common='{COMMON}'", f"cluster.cells_per_job={per_job}")
    print(command("submit", *settings, *CLUSTER).splitlines()[0])
    print(f"submitted in {time.monotonic() - started:.0f} s")
    print(f"first submission over after {wait('001'):.0f} s: {counts()}", flush=True)
    print(f"killed: {broken - len(list(Path('victims').iterdir()))}")
    for index in failing:
        (Path("runs/sweep/cells") / names[index]).unlink()
    command("status", "folder=runs/sweep", "resubmit=true")
    print(f"resubmission over after {wait('002'):.0f} s: {counts()}", flush=True)
    assert alone.wait() == 0
    tables = [pd.read_parquet(f"{output}/sweep/report/networks.parquet") for output in ("undisturbed", "runs")]
    tables = [table.sort_values(["run", "member"], ignore_index=True) for table in tables]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    print(f"tables of {tables[0]['run'].nunique()} cells, {len(tables[0])} networks, are identical")


if __name__ == "__main__":
    main()
