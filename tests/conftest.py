"""Shared set-up: no network, no wandb account, one thread count for reproducibility."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from ridgescope.__main__ import main

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else it looks for a network when the tests end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker is left with a long one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def fashion_mnist() -> Path:
    """The folder with Debian's four gz files; tests that need real Fashion-MNIST are skipped without it."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip("no Fashion-MNIST on disk: apt install dataset-fashion-mnist")
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


Outcome = tuple[int | str | None, str, str]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Outcome]:
    """A command in this process, in an empty folder: its status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Outcome:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["ridgescope", *words])
        capsys.readouterr()
        try:
            status: int | str | None = main()
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], Path]:
    """``own_module(name, source)`` puts a module of the user's into an empty folder, the working folder, and returns
    that."""

    def write(name: str, source: str) -> Path:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.path", list(sys.path))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return tmp_path

    return write
