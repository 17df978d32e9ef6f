"""wandb is a view: it never blocks, never decides, and what it shows is what the files say."""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import wandb

from ridgescope.train.config import register
from ridgescope.train.errors import UserError
from ridgescope.train.main import run_cell
from ridgescope.train.sweep import compose_cells
from ridgescope.train.wandb_logging import finish, make_logger, resolve_mode

PLACE: dict[str, Any] = {
    "project": "p",
    "entity": None,
    "group": "g",
    "job_type": "train",
    "tags": [],
    "config": {"width": 8},
}
LIMIT = 60.0  # seconds; less than 10 on a quiet machine, and wandb by itself blocks for 100 and more


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "")  # so that what Lightning's logger leaves there goes away again
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    wandb.teardown()  # a test that fails leaves its run to no other


def inspect(folder: Path, *options: str) -> str:
    """What wandb's own tool reads of the one run under a folder."""
    (run,) = folder.rglob("run-*.wandb")
    words = [sys.executable, "-m", "wandb", "leet", "inspect", *options, "--json", str(run)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


class Answers(BaseHTTPRequestHandler):
    """As much of wandb's server as a run needs to start; once ``silent`` is set it takes requests and says nothing."""

    silent: Event

    def do_POST(self) -> None:
        query = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode(errors="replace")
        if self.silent.wait(0):
            time.sleep(60)
        bucket = {"id": "x", "name": "n", "displayName": "n", "config": "{}", "historyLineCount": 0}
        bucket["project"] = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        known: dict[str, Any] = {"model": None}
        if "upsertBucket" in query:
            known = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        elif "createRunFiles" in query:
            known = {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": []}}
        answer = json.dumps({"data": known}).encode()
        with suppress(BrokenPipeError):  # the other side has given up
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """A key, and a server that answers until this is set."""
    event = Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Server", (Answers,), {"silent": event}))
    server.daemon_threads = True
    server.block_on_close = False
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield event
    server.shutdown()
    server.server_close()


def test_without_a_key_it_is_offline(capsys: pytest.CaptureFixture[str]) -> None:
    assert resolve_mode("auto") == "offline"
    assert capsys.readouterr().err == ""
    assert resolve_mode("online") == "offline"
    message = "wandb: no key (wandb login, or WANDB_API_KEY); writing offline, upload it later with ridgescope sync\n"
    assert capsys.readouterr().err == message


def test_with_a_key_but_no_server_it_is_offline_within_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    assert (resolve_mode("auto"), resolve_mode("online")) == ("offline", "offline")
    assert time.monotonic() - start < 5
    assert "no answer from 127.0.0.1 within 2 s" in capsys.readouterr().err


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("online") == "disabled"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert resolve_mode("auto") == "offline"


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UserError, match=r"logging\.wandb='sometimes' is unknown; choose auto"):
        resolve_mode("sometimes")


@pytest.mark.slow
def test_a_server_that_takes_requests_and_never_answers_is_not_waited_for(
    tmp_path: Path, silent: Event, capsys: pytest.CaptureFixture[str]
) -> None:
    silent.set()
    start = time.monotonic()
    logger = make_logger(tmp_path / "cell", mode="online", name="a", run_id="g/a b", **PLACE)
    assert logger is not None
    assert logger.experiment.offline
    finish(logger)
    assert time.monotonic() - start < LIMIT
    assert "writing offline, upload it later with ridgescope sync" in capsys.readouterr().err
    assert list((tmp_path / "cell").glob("wandb/offline-run-*/run-g-a-b.wandb"))


@pytest.mark.slow
def test_a_network_that_goes_away_half_way_is_not_waited_for_and_costs_no_data(tmp_path: Path, silent: Event) -> None:
    logger = make_logger(tmp_path, mode="online", name="a", run_id="a", **PLACE)
    assert logger is not None
    assert not logger.experiment.offline
    logger.log_metrics({"train/loss": 2.0}, step=10)
    silent.set()
    logger.log_metrics({"train/loss": 1.0}, step=20)
    start = time.monotonic()
    finish(logger)
    assert time.monotonic() - start < LIMIT
    wandb.teardown()  # as at the end of the process
    records = [json.loads(line) for line in inspect(tmp_path).splitlines()]
    losses = [record["history"]["item"]["train/loss"] for record in records if record["type"] == "history"]
    assert losses == [2.0, 1.0]


@pytest.mark.slow
def test_what_wandb_shows_of_a_cell_is_what_its_files_say(tmp_path: Path) -> None:
    """Two cells of one process are two runs; each by wandb's own reader against metrics.csv and done.json."""
    register()
    common = f"output={tmp_path} name=sweep data.train_size=10 data.pool_size=100 data.test_size=50 ridges=[1e-1]"
    common += " num_seeds=1 num_draws=2 logging.wandb=offline logging.tags=[mine] logging.tensorboard=true"
    pytest.importorskip("tensorboard")
    folders = [run_cell(cell) for cell in compose_cells([*common.split(), "model.width=4,6"])]
    for folder in folders:
        records = [json.loads(line) for line in inspect(folder).splitlines()]
        (run,) = (record["run"] for record in records if record["type"] == "run")
        assert (run["project"], run["run_group"], run["job_type"]) == ("ridgescope", "sweep", "train")
        assert (run["display_name"], run["run_id"]) == (folder.name, f"sweep-{folder.name.rsplit('-')[-1]}")
        assert run["tags"] == ["digits", "mlp", "mine"]
        with (folder / "metrics.csv").open() as handle:
            last = [row for row in csv.DictReader(handle)][-1]
        done = json.loads((folder / "done.json").read_text())
        values = json.loads(inspect(folder, "--summary"))["summary"]
        assert values["trainer/global_step"] == int(last["step"])
        assert values["cell/converged"] == done["converged"] == 2
        assert values["cell/seconds"] == done["seconds"]
        assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
