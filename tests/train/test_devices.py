"""Several processes share the members; lower precision and compilation are options that change little."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ridgescope.models import MLP
from ridgescope.train import interruption
from ridgescope.train.cell import train_cell
from ridgescope.train.data import PreparedData, prepare_data
from ridgescope.train.errors import Interrupted, UserError
from ridgescope.train.optimisers import SGD


def prepared(dtype: torch.dtype) -> PreparedData:
    return prepare_data("digits", train_size=10, pool_size=100, test_size=50, num_draws=4, dtype=dtype)


def train(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {
        "config": {"data": {"seed": 0}},
        "data": prepared(torch.float64),
        "factory": partial(MLP, width=16, depth=1, activation="erf"),
        "optimiser": SGD(),
        "ridges": [1e-1],
        "num_seeds": 4,
        "design": "paired",
        "seed": 0,
        "alpha": 1.0,
        "batch_size": None,
        "max_steps": 150,
        "tolerance": 1e-8,
        "dtype": torch.float64,
        "accelerator": "cpu",
        "memory": 10**9,
    }
    train_cell(folder, **(settings | changes))
    return [m for path in sorted(folder.glob("program-*.json")) for m in json.loads(path.read_text())]


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_pass_signals_on(tmp_path: Path) -> None:
    """Stopped when each has finished one program, then continued by one process: the bits of one process alone."""
    # seconds for each program: a signal is passed on within 0.2 s, long before the second ones end
    settings: dict[str, Any] = {"memory": 1, "max_steps": 1500, "stop": "steps"}
    once = train(tmp_path / "one", **settings)
    killer = threading.Thread(target=_signal_when_finished, args=(tmp_path / "two", 2))
    interruption.listen()
    try:
        killer.start()
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            train(tmp_path / "two", devices=2, checkpoint_every=0.0, **settings)
        killer.join()
    finally:
        for number in interruption.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        interruption._listening = False
    assert (tmp_path / "two" / "program-000.json").exists()  # of the first process
    assert (tmp_path / "two" / "program-001.json").exists()  # of the second
    assert len(list((tmp_path / "two").glob("checkpoint-*"))) == 2
    assert train(tmp_path / "two", **settings) == once
    assert set(pd.read_csv(tmp_path / "two" / "metrics.csv")["program"]) == {0, 1, 2, 3}
    for index in range(4):
        name = f"program-{index:03d}.safetensors"
        mine, theirs = (load_file(tmp_path / folder / name) for folder in ("one", "two"))
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def _signal_when_finished(folder: Path, programs: int) -> None:
    # the checkpoints of the programs after those: a finished one's is there for a moment longer than its training
    while not all(list(folder.glob(f"checkpoint-{index:03d}*")) for index in (programs, programs + 1)):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def _full_precision_after() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("_full_precision_after")
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_lower_precision_is_close_to_single(tmp_path: Path, precision: str) -> None:
    single: dict[str, Any] = {"data": prepared(torch.float32), "dtype": torch.float32, "stop": "steps"}
    exact = train(tmp_path / "exact", **single)
    rounded = train(tmp_path / "rounded", precision=precision, **single)
    assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")
    for a, b in zip(exact, rounded, strict=True):
        assert b["test_risk"] == pytest.approx(a["test_risk"], rel=3e-2)
    if precision == "bf16":
        assert [a["loss"] for a in exact] != [b["loss"] for b in rounded]


# Dynamo asks intermediate tensors for .grad, torch 2.14
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_training_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as for any backend; generating C++ from that, torch's own work, takes 20 s."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    eager, compiled = train(tmp_path / "eager", max_steps=20), train(tmp_path / "compiled", max_steps=20, compile=True)
    for a, b in zip(eager, compiled, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-10)


def test_impossible_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="precision='fp8' is unknown; choose one of highest, tf32, bf16"):
        train(tmp_path / "a", precision="fp8")
    with pytest.raises(UserError, match="precision=bf16 is a way to compute in float32; give dtype=float32 too"):
        train(tmp_path / "b", precision="bf16")
    with pytest.raises(UserError, match="devices=0 trains nothing"):
        train(tmp_path / "c", devices=0)
