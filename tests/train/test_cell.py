"""A cell's folder: complete, traceable, never overwritten, and continued where it was interrupted."""

import fcntl
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ridgescope.models import MLP
from ridgescope.train.cell import train_cell
from ridgescope.train.config import register
from ridgescope.train.data import prepare_data
from ridgescope.train.errors import UserError
from ridgescope.train.files import write_atomically, write_json
from ridgescope.train.main import run_cell
from ridgescope.train.optimisers import KernelLBFGS
from ridgescope.train.sweep import compose_cells


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    data = prepare_data("digits", train_size=10, pool_size=100, test_size=50, num_draws=2, seed=changes.pop("split", 0))
    settings: dict[str, Any] = {
        "config": {"data": {"seed": 0}},
        "data": data,
        "factory": partial(MLP, width=16, depth=1, activation="erf"),
        "optimiser": KernelLBFGS(),
        "ridges": [1e-1],
        "num_seeds": 2,
        "design": "crossed",
        "seed": 3,
        "alpha": 10.0,
        "batch_size": None,
        "max_steps": 100,
        "tolerance": 1e-6,
        "dtype": torch.float64,
        "accelerator": "cpu",
        "memory": 10**9,
    }
    return train_cell(folder, **(settings | changes))


def members(folder: Path) -> list[dict[str, Any]]:
    return [m for path in sorted(folder.glob("program-*.json")) for m in json.loads(path.read_text())]


def test_a_cell_holds_everything_that_later_measurement_needs(tmp_path: Path) -> None:
    done = run(tmp_path / "cell")
    assert done["converged"] == done["members"] == 4
    names = {path.name for path in (tmp_path / "cell").iterdir()}
    assert names >= {"config.yaml", "splits.json", "splits.safetensors", "environment.json", "metrics.csv", "done.json"}
    initial = load_file(tmp_path / "cell" / "initial.safetensors")
    final = load_file(tmp_path / "cell" / "program-000.safetensors")
    assert {name: len(value) for name, value in initial.items()} == dict.fromkeys(final, 2)
    assert {len(value) for value in final.values()} == {4}
    assert [(m["seed"], m["draw"]) for m in members(tmp_path / "cell")] == [(3, 0), (3, 1), (4, 0), (4, 1)]
    environment = json.loads((tmp_path / "cell" / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]


def test_small_memory_means_several_programs_and_the_same_result(tmp_path: Path) -> None:
    run(tmp_path / "one")
    run(tmp_path / "many", memory=1)
    assert len(list((tmp_path / "many").glob("program-*.json"))) == 4
    for a, b in zip(members(tmp_path / "one"), members(tmp_path / "many"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)


def test_an_interrupted_cell_keeps_what_was_finished(tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    run(folder, memory=1)
    weights = {path.name: path.read_bytes() for path in folder.glob("program-*.safetensors")}
    kept = (folder / "program-000.safetensors").stat().st_mtime_ns
    for name in ("done.json", "program-003.json", "program-003.safetensors"):
        (folder / name).unlink()
    run(folder, memory=1)
    assert (folder / "program-000.safetensors").stat().st_mtime_ns == kept
    assert {path.name: path.read_bytes() for path in folder.glob("program-*.safetensors")} == weights


def test_a_finished_cell_is_not_touched(tmp_path: Path) -> None:
    run(tmp_path / "cell")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cell").iterdir()}
    run(tmp_path / "cell", max_steps=1)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cell").iterdir()}


def test_a_cell_begun_with_other_splits_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "cell")
    (tmp_path / "cell" / "done.json").unlink()
    with pytest.raises(UserError, match="was begun with other splits"):
        run(tmp_path / "cell", split=1)


def test_two_processes_cannot_train_one_cell(tmp_path: Path) -> None:
    (tmp_path / "cell").mkdir()
    with (tmp_path / "cell" / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being trained by another process"):
            run(tmp_path / "cell")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ridges": []}, "ridges=\\[\\] trains nothing"),
        ({"ridges": [1e-2, 1e-2]}, "names one twice"),
        ({"ridges": [float("nan")]}, "ridge nan is not possible"),
        ({"num_seeds": 0}, "num_seeds=0"),
        ({"alpha": 0.0}, "alpha=0.0 must be positive"),
        ({"tolerance": -1.0}, "tolerance=-1.0 must be positive"),
        ({"max_steps": 0}, "max_steps=0 must be positive"),
    ],
)
def test_impossible_settings_name_the_value(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path / "cell", **changes)
    assert not (tmp_path / "cell" / "done.json").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write_json(path, [1, 2])

    def breaks(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*table.json \(No space left on device\)"):
        write_atomically(path, breaks)
    assert json.loads(path.read_text()) == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]


@pytest.mark.slow
def test_a_disk_that_is_full_is_one_line_and_the_same_command_continues(tmp_path: Path) -> None:
    """No file can grow beyond 8 kB: weights do not fit. Then they can."""
    words = "-m ridgescope train name=a data=digits data.pool_size=100 data.test_size=50 data.train_size=10 num_draws=1"
    words += " num_seeds=1 ridges=[1e-1] model.width=64"
    command = f"ulimit -f 8; exec {sys.executable} {words}"
    full = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert full.returncode == 2
    message = full.stderr.splitlines()[-1]
    assert message.startswith("ridgescope: error: cannot write runs/a/cells/")
    assert "initial.safetensors (" in message
    assert "File too large" in message
    assert message.endswith("; free space or choose output=FOLDER")
    register()
    settings = words.removeprefix("-m ridgescope train ").split()
    (cell,) = compose_cells([*settings, f"output={tmp_path / 'runs'}"])
    assert (run_cell(cell) / "done.json").is_file()
    assert len(list(tmp_path.glob("runs/a/cells/*"))) == 1
