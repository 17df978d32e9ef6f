"""Killed at any moment, continued by the same command, ended bit-identical."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from safetensors import safe_open
from torch import Tensor

from ridgescope.__main__ import main
from ridgescope.models import MLP
from ridgescope.train import interruption
from ridgescope.train.cell import train_cell
from ridgescope.train.checkpoint import Checkpoint, CheckpointFile
from ridgescope.train.data import prepare_data
from ridgescope.train.ensemble import Member
from ridgescope.train.errors import Interrupted, UserError
from ridgescope.train.optimisers import SGD, Adam, KernelLBFGS, OptimiserFactory
from ridgescope.train.plan import plan_programs
from ridgescope.train.training import EnsembleTraining

METHODS = [(KernelLBFGS(refresh=4), None), (SGD(), None), (SGD(momentum=0.9), 4), (Adam(), None)]


def run(folder: Path, optimiser: OptimiserFactory, batch_size: int | None = None, **changes: Any) -> None:
    settings: dict[str, Any] = {
        "config": {"data": {"seed": 0}, "optimiser": repr(optimiser)},
        "data": prepare_data("digits", train_size=10, pool_size=100, test_size=50, num_draws=2),
        "factory": partial(MLP, width=16, depth=1, activation="erf"),
        "optimiser": optimiser,
        "ridges": [1e-2],
        "num_seeds": 2,
        "design": "paired",
        "seed": 3,
        "alpha": 1.0,
        "batch_size": batch_size,
        "max_steps": 40,
        "tolerance": 1e-9,
        "dtype": torch.float64,
        "accelerator": "cpu",
        "memory": 10**9,
        "checkpoint_every": 0.0,
    }
    train_cell(folder, **(settings | changes))


def results(folder: Path) -> dict[str, bytes]:
    """Everything that a cell says, but for its times; of the metrics the last row of each step and member."""
    files = {path.name: path.read_bytes() for path in sorted(folder.glob("program*"))}
    metrics = pd.read_csv(folder / "metrics.csv", dtype=str).drop(columns=["seconds", "restart"])
    rows = metrics.drop_duplicates(["program", "step", "member"], keep="last")
    return files | {"metrics": rows.to_csv(index=False).encode()}


def at_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do something when ``step`` steps are done and the next begins."""
    original = EnsembleTraining.training_step

    def training_step(self: EnsembleTraining, positions: Tensor, batch_idx: int) -> None:
        if self.step == step:
            act()
        original(self, positions, batch_idx)

    patch.setattr(EnsembleTraining, "training_step", training_step)


def die() -> None:
    raise RuntimeError("killed")


@pytest.fixture
def listening() -> Iterator[None]:
    before = [signal.getsignal(number) for number in interruption.SIGNALS]
    interruption.listen()
    yield
    for number, handler in zip(interruption.SIGNALS, before, strict=True):
        signal.signal(number, handler)
    interruption._listening = False


@pytest.mark.parametrize(("optimiser", "batch_size"), METHODS, ids=["lbfgs", "sgd", "minibatch", "adam"])
def test_a_program_that_dies_at_any_step_ends_bit_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimiser: OptimiserFactory, batch_size: int | None
) -> None:
    run(tmp_path / "whole", optimiser, batch_size)
    assert not list((tmp_path / "whole").glob("checkpoint*"))
    # dies without a checkpoint, then with those of steps 3, 6 (continued from 3) and 7, then again without a newer one
    for step, every in ((2, 1e9), (3, 0.0), (6, 0.0), (7, 0.0), (9, 1e9)):
        with monkeypatch.context() as patch:
            at_step(patch, step, die)
            with pytest.raises(RuntimeError, match="killed"):
                run(tmp_path / "torn", optimiser, batch_size, checkpoint_every=every)
        assert bool(list((tmp_path / "torn").glob("checkpoint*"))) == (step > 2)
    run(tmp_path / "torn", optimiser, batch_size)
    assert results(tmp_path / "torn") == results(tmp_path / "whole")


@pytest.mark.parametrize("number", interruption.SIGNALS)
def test_a_signal_lets_the_step_end_and_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listening: None, number: signal.Signals
) -> None:
    run(tmp_path / "whole", SGD())
    with monkeypatch.context() as patch:
        at_step(patch, 11, partial(signal.raise_signal, number))
        with pytest.raises(Interrupted, match=f"stopped by {number.name} after step 12; the same command continues"):
            run(tmp_path / "torn", SGD(), checkpoint_every=1e9)
    checkpoint = next((tmp_path / "torn").glob("checkpoint*"))
    with safe_open(checkpoint, "pt") as file:
        assert json.loads(file.metadata()["ridgescope"])["step"] == 12
    assert signal.getsignal(number) is interruption._handle  # Lightning has put back what it found
    run(tmp_path / "torn", SGD())
    assert results(tmp_path / "torn") == results(tmp_path / "whole")


def test_outside_training_a_signal_strikes_at_once(listening: None) -> None:
    with pytest.raises(Interrupted, match="stopped by SIGTERM; the same command continues"):
        signal.raise_signal(signal.SIGTERM)
    done = []

    def block() -> None:
        with interruption.deferred():
            signal.raise_signal(signal.SIGTERM)
            done.append("the block")

    with pytest.raises(Interrupted):
        block()
    assert done == ["the block"]


def test_what_a_checkpoint_gives_back_lies_where_a_new_tensor_would(tmp_path: Path) -> None:
    """Matrix products may round otherwise where rows begin elsewhere: in the file, the second tensor 24 bytes on."""
    file = CheckpointFile(tmp_path / "c.safetensors", "config", [Member(seed=0, draw=0, ridge=0.1)])
    kept = {"a": torch.arange(3.0).double(), "b": torch.arange(5.0).double()}
    file.write(Checkpoint(1, kept, {"c": kept["b"] + 1}))
    found = file.read()
    assert found is not None
    assert torch.equal(found.training["b"], kept["b"])
    for value in (*found.training.values(), *found.optimiser.values()):
        assert value.data_ptr() % 64 == 0


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 5, die)
    for name, ridge in (("a", 1e-2), ("b", 1e-3)):
        with pytest.raises(RuntimeError, match="killed"):
            run(tmp_path / name, SGD(), ridges=[ridge])
    monkeypatch.undo()
    name = "checkpoint-000.safetensors"
    mine = (tmp_path / "a" / name).read_bytes()
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(UserError, match=r"checkpoint of another run \(members .*delete it to train this program again"):
        run(tmp_path / "a", SGD(), ridges=[1e-2])
    (tmp_path / "a" / name).write_bytes(mine[:-50])
    with pytest.raises(UserError, match=r"cannot read .*checkpoint-000.safetensors"):
        run(tmp_path / "a", SGD(), ridges=[1e-2])
    with pytest.raises(UserError, match="begun with another config"):
        run(tmp_path / "a", SGD(), ridges=[1e-2], config={"data": {"seed": 0}, "alpha": 2.0})


def test_another_memory_budget_never_mixes_two_splits(tmp_path: Path) -> None:
    members = [Member(seed, seed, 1e-2) for seed in range(6)]
    programs = plan_programs(tmp_path, members, 3)
    assert programs == [members[:3], members[3:]]
    record = [{"seed": m.seed, "draw": m.draw, "ridge": m.ridge, "status": "converged"} for m in members[:3]]
    (tmp_path / "program-000.json").write_text(json.dumps(record))
    assert plan_programs(tmp_path, members, 6) == programs
    smaller = plan_programs(tmp_path, members, 2)
    assert smaller == [members[:3], members[3:5], members[5:]]
    assert plan_programs(tmp_path, members, 100) == smaller
    (tmp_path / "program-002.json").write_text(json.dumps(record[:1]))
    with pytest.raises(UserError, match=r"program-002.json holds other members than programs.json plans"):
        plan_programs(tmp_path, members, 2)
    with pytest.raises(UserError, match="begun with other members"):
        plan_programs(tmp_path, members[1:], 2)


def test_a_folder_without_a_plan_keeps_its_finished_programs(tmp_path: Path) -> None:
    """As versions before 0.2 left it."""
    members = [Member(seed, seed, 1e-2) for seed in range(4)]
    record = [{"seed": m.seed, "draw": m.draw, "ridge": m.ridge, "status": "converged"} for m in members[:3]]
    (tmp_path / "program-000.json").write_text(json.dumps(record))
    assert plan_programs(tmp_path, members, 2) == [members[:3], members[3:]]


def test_a_cell_interrupted_and_continued_with_another_budget_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", KernelLBFGS(), num_seeds=4)
    with monkeypatch.context() as patch:
        patch.setattr("ridgescope.train.cell._finish", lambda *_: die())
        with pytest.raises(RuntimeError):
            run(tmp_path / "torn", KernelLBFGS(), num_seeds=4, memory=1)
    for name in ("program-001.json", "program-003.json", "program-003.safetensors"):
        (tmp_path / "torn" / name).unlink()
    run(tmp_path / "torn", KernelLBFGS(), num_seeds=4, memory=10**9)
    assert len(list((tmp_path / "torn").glob("program-*.json"))) == 4
    whole = json.loads((tmp_path / "whole" / "program-000.json").read_text())
    torn = [json.loads((tmp_path / "torn" / f"program-{i:03d}.json").read_text())[0] for i in range(4)]
    assert [(m["seed"], m["draw"]) for m in torn] == [(m["seed"], m["draw"]) for m in whole]
    assert [m["loss"] for m in torn] == pytest.approx([m["loss"] for m in whole], rel=1e-9)


# slow descent of a small network: more seconds of steps than the test waits before it stops them, checkpoints between
COMMAND = (
    "train", "name=restart", "optimiser=sgd", "alpha=1", "model.width=16", "data.train_size=20", "data.pool_size=100",
    "data.test_size=50", "ridges=[1e-3]", "num_seeds=2", "num_draws=2", "max_steps=2500", "tolerance=1e-12",
    "checkpoint_every=0.1", "accelerator=cpu",
)  # fmt: skip


def start(cwd: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "ridgescope", *COMMAND]
    return subprocess.Popen(words, cwd=cwd, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    errors = process.communicate()[1]
    assert process.returncode == 0, errors


def checkpoint_times(folder: Path) -> list[int]:
    times = []
    for path in folder.rglob("checkpoint-*"):
        with suppress(FileNotFoundError):  # replaced meanwhile
            times.append(path.stat().st_mtime_ns)
    return times


@pytest.mark.slow
def test_the_command_killed_and_stopped_ends_as_if_it_never_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listening: None
) -> None:
    cells = Path("runs") / "restart" / "cells"
    for name in ("whole", "torn"):
        (tmp_path / name).mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "whole")
        patch.setattr(sys, "argv", ["ridgescope", *COMMAND])
        GlobalHydra.instance().clear()
        assert main() == 0
    rng = random.Random(0)
    for number in (signal.SIGKILL, signal.SIGTERM):
        before = checkpoint_times(tmp_path / "torn")
        process = start(tmp_path / "torn")
        while checkpoint_times(tmp_path / "torn") == before:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        os.kill(process.pid, number)
        errors = process.communicate()[1]
        assert process.returncode == (75 if number == signal.SIGTERM else -number), errors
        if number == signal.SIGTERM:
            assert errors.strip().splitlines()[-1].startswith("ridgescope: stopped by SIGTERM")
    finish(start(tmp_path / "torn"))
    folders = [next((tmp_path / name / cells).iterdir()) for name in ("whole", "torn")]
    assert results(folders[0]) == results(folders[1])
