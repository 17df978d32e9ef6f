"""What the dashboard shows is what the Parquet tables say."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ridgescope.analysis.verdict import evaluate
from ridgescope.analysis.wandb_view import KAPPA, LINKS, RISK, VERDICTS, show, tables

Planted = Callable[..., pd.DataFrame]


def test_the_charts_have_the_planted_links(planted: Planted) -> None:
    networks = planted(noise=0.0, lazy_off=0.1, width_excess=0.2)
    links = tables(networks, evaluate(networks))[LINKS]
    deviation = links.groupby(["link", "width"])["deviation"].mean()
    assert deviation["kernel → network", 64] == pytest.approx(0.1)
    assert deviation["infinite → finite width", 64] == pytest.approx(0.05)
    assert deviation["theory → infinite width", 64] == pytest.approx(0.0, abs=1e-12)


def test_one_line_per_setting_size_and_ridge(planted: Planted) -> None:
    networks = planted(noise=0.0)
    frames = tables(networks, evaluate(networks))
    assert set(frames[KAPPA]["curve"]) == {f"mlp, P {p}, ridge {r:g}" for p in (100, 400) for r in (1e-4, 1e-2)}
    assert not frames[RISK].duplicated(["curve", "width"]).any()
    np.testing.assert_allclose(frames[KAPPA]["measured"], frames[KAPPA]["predicted"])


@pytest.mark.slow
def test_an_offline_analysis_is_read_back_by_wandb_as_the_parquet_files_say(
    tmp_path: Path, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    networks, report = planted(), tmp_path / "sweep" / "report"
    verdicts = evaluate(networks)
    for name in ("index.html", "figures/mlp_kappa.svg"):
        (report / name).parent.mkdir(parents=True, exist_ok=True)
        (report / name).write_text("as the report has it")
    verdicts.to_parquet(report / "verdicts.parquet")
    settings = {"wandb": "offline", "project": "p", "entity": None, "tags": ["mine"]}
    show(tmp_path / "sweep", networks, verdicts, settings, 1.5)
    (run,) = report.rglob("run-*.wandb")
    assert run.name == "run-sweep-analysis.wandb"
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    records = [json.loads(line) for line in lines]
    (place,) = (record["run"] for record in records if record["type"] == "run")
    assert (place["run_group"], place["job_type"], place["tags"]) == ("sweep", "analysis", ["mine"])
    kept = pd.read_parquet(report / "verdicts.parquet")
    summary = {item: value for r in records if r["type"] == "summary" for item, value in r["summary"]["update"].items()}
    counts = {str(name): int(count) for name, count in kept["verdict"].value_counts().items()}
    assert {name: summary[f"verdicts/{name}"] for name in counts} == counts
    (logged,) = (record["history"]["item"] for record in records if record["type"] == "history")
    table = json.loads((run.parent / "files" / logged[f"{VERDICTS}.path"]).read_text())
    seen = pd.DataFrame(table["data"], columns=table["columns"])
    assert list(seen["sentence"]) == list(kept["sentence"])
    for column in ("measured", "predicted", "deviation", "low", "high"):
        np.testing.assert_allclose(seen[column].astype(float), kept[column], rtol=1e-12)
    artifacts = {record["artifact"]["name"]: record["artifact"] for record in records if record["type"] == "artifact"}
    assert artifacts["sweep-report"]["type"] == "report"
    names = {entry["path"] for entry in artifacts["sweep-report"]["manifest"]["contents"]}
    assert names == {"index.html", "verdicts.parquet", "figures/mlp_kappa.svg"}
