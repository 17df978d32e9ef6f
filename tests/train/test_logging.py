"""Progress reads well in a log."""

import pytest

from ridgescope.train import progress as progress_module
from ridgescope.train.progress import duration, progress


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
