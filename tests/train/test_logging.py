"""wandb never blocks and never decides; progress reads well in a log."""

import time
from pathlib import Path
from typing import Any

import pytest

from ridgescope.train import progress as progress_module
from ridgescope.train.errors import UserError
from ridgescope.train.progress import duration, progress
from ridgescope.train.wandb_logging import finish, make_logger, resolve_mode


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_without_a_key_it_is_offline() -> None:
    assert resolve_mode("auto") == "offline"


def test_with_a_key_but_no_server_it_is_offline_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    assert resolve_mode("auto") == "offline"
    assert time.monotonic() - start < 5


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("online") == "disabled"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert resolve_mode("auto") == "offline"


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UserError, match=r"logging\.wandb='sometimes' is unknown; choose auto"):
        resolve_mode("sometimes")


@pytest.mark.slow
def test_two_jobs_of_one_process_are_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common: dict[str, Any] = {
        "project": "p",
        "entity": None,
        "group": "g",
        "job_type": "train",
        "tags": [],
        "config": {},
    }
    for name in ("a", "b"):
        monkeypatch.delenv("WANDB_MODE", raising=False)
        logger = make_logger(tmp_path / name, mode="offline", name=name, run_id=name, **common)
        assert logger is not None
        assert logger.experiment.id == name
        logger.log_metrics({"train/loss": 1.0})
        finish(logger)
    for name in ("a", "b"):
        assert list((tmp_path / name).rglob(f"run-{name}.wandb"))


def test_progress_in_a_log_is_a_few_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "on_terminal", lambda: False)
    with progress("measuring", 50) as steps:
        for _ in range(50):
            steps.advance()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("measuring: 50/50 (100%) after")


@pytest.mark.parametrize(("seconds", "text"), [(0.25, "0.2 s"), (59, "59 s"), (75, "1 min 15 s"), (7260, "2 h 1 min")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
