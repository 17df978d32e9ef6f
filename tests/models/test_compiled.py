"""What Numba keeps of the compiled functions between processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ridgescope

PROGRAM = """
import torch
from ridgescope.models import MLP, infinite_ntk
net = MLP((3,), 1, width=2, depth=1, activation="erf", generator=torch.Generator().manual_seed(0))
kernel = infinite_ntk(net, torch.eye(3, dtype=torch.float64)).ntk
from ridgescope.models.kernels.infinite import dense
print(float(kernel[0, 0]), sum(dense.layers.stats.cache_hits.values()))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package in a folder of its own, as an installed wheel is one."""
    ignore = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(Path(ridgescope.__file__).parent, tmp_path / "ridgescope", ignore=ignore))


def run(package: Path, **variables: str) -> tuple[float, int]:
    """A diagonal entry of a kernel in a new process, and how many compiled functions it found."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=package.parent,
        env=environment | {"PYTHONPATH": str(package.parent)} | variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    value, hits = done.stdout.split()
    return float(value), int(hits)


@pytest.mark.slow
def test_a_change_in_another_file_is_compiled_anew(package: Path) -> None:
    kernel, found = run(package)
    assert found == 0
    assert run(package) == (kernel, 1)
    file = package / "models/kernels/infinite/activated.py"
    before = file.read_text()
    assert before.count("k[i] = turn + slope * sine") == 1
    file.write_text(before.replace("k[i] = turn + slope * sine", "k[i] = 1000.0"))
    changed, found = run(package)
    assert changed > 100 * kernel
    assert found == 0


@pytest.mark.slow
def test_kernels_without_a_folder_that_can_be_written_to(package: Path, tmp_path: Path) -> None:
    # where even root cannot write: files in place of the package's folder for caches and of the user's home
    (package / "models/kernels/infinite/__pycache__").write_text("")
    nowhere = tmp_path / "home"
    nowhere.write_text("")
    home = str(nowhere)
    assert run(package, HOME=home, XDG_CACHE_HOME=home, LOCALAPPDATA=home)[1] == 0
