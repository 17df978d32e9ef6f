"""Several processes share the members; lower precision and compilation are options that change little."""

import json
import os
import signal
import threading
import time
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
from ridgescope.train.data import prepare_data
from ridgescope.train.errors import Interrupted, UserError
from ridgescope.train.optimisers import SGD
from ridgescope.train.programs import fast_forward


def train(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {
        "config": {"data": {"seed": 0}},
        "data": prepare_data("digits", train_size=10, pool_size=100, test_size=50, num_draws=4),
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
def test_two_processes_train_what_one_does_and_pass_signals_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process with the same programs is the reference: the same bits."""
    once = train(tmp_path / "one", memory=1)
    interruption.listen()
    try:
        # stopped while both processes train, then continued
        torn = tmp_path / "two"
        killer = threading.Thread(target=_signal_when_begun, args=(torn,))
        killer.start()
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            train(torn, devices=2, memory=1, max_steps=150, checkpoint_every=0.0, tolerance=1e-300, stop="steps")
        killer.join()
    finally:
        for number in interruption.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        interruption._listening = False
    assert list(torn.glob("checkpoint-*")) or list(torn.glob("program-*.json"))
    assert train(tmp_path / "both", devices=2, memory=1) == once
    metrics = pd.read_csv(tmp_path / "both" / "metrics.csv")
    assert set(metrics["program"]) == {0, 1, 2, 3}
    for index in range(4):
        name = f"program-{index:03d}.safetensors"
        mine, theirs = (load_file(tmp_path / folder / name) for folder in ("one", "both"))
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def _signal_when_begun(folder: Path) -> None:
    while not list(folder.glob("checkpoint-*")):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"precision": "tf32"}])
def test_lower_precision_is_close_to_single(tmp_path: Path, options: dict[str, Any]) -> None:
    exact = train(tmp_path / "exact", dtype=torch.float32, tolerance=1e-4)
    rounded = train(tmp_path / "rounded", dtype=torch.float32, tolerance=1e-4, **options)
    assert torch.get_float32_matmul_precision() == ("high" if options["precision"] == "tf32" else "highest")
    torch.set_float32_matmul_precision("highest")
    for a, b in zip(exact, rounded, strict=True):
        assert b["test_risk"] == pytest.approx(a["test_risk"], rel=3e-2)
    if options["precision"] == "bf16":
        assert [a["loss"] for a in exact] != [b["loss"] for b in rounded]


@pytest.mark.slow
def test_compiled_training_is_the_same(tmp_path: Path) -> None:
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


def test_no_option_means_the_plain_function() -> None:
    assert fast_forward(None, "highest", False, torch.float64) is None  # type: ignore[arg-type]
