"""``ridgescope analyse`` and ``ridgescope validate``: from cells to verdicts."""

import sys
import time
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
from omegaconf import DictConfig
from rich.console import Console

from ridgescope.analysis.claims import Claim, claims_from
from ridgescope.analysis.config import register
from ridgescope.analysis.cost import estimate_seconds
from ridgescope.analysis.experiment import Tables, project
from ridgescope.analysis.kernels import open_store
from ridgescope.analysis.report import print_verdicts, write_report
from ridgescope.analysis.verdict import evaluate, failed_required
from ridgescope.analysis.wandb_view import show
from ridgescope.models import KernelStore
from ridgescope.train.cell import is_done
from ridgescope.train.config import checked
from ridgescope.train.entry import one_line_errors
from ridgescope.train.errors import UserError
from ridgescope.train.main import cell_folder, run_cell
from ridgescope.train.progress import duration, progress, quiet, say
from ridgescope.train.provenance import environment
from ridgescope.train.sweep import compose_cells, experiment_lines

CLAIM_FAILED = 3  # exit status; 2 is a mistake of the user


@hydra.main(version_base="1.3", config_path="pkg://ridgescope.conf", config_name="analyse")
@one_line_errors
def analyse(config: DictConfig) -> None:
    quiet()
    plain = checked(config)
    _end(report(Path(plain["folder"]), **_judging(plain), command=_command("analyse")))


@hydra.main(version_base="1.3", config_path="pkg://ridgescope.conf", config_name="validate")
@one_line_errors
def validate(config: DictConfig) -> None:
    """Train every cell that is not done, then analyse."""
    quiet()
    plain = checked(config)
    settings = {key: plain[key] for key in ("sweeps", "common", "overrides", "name", "output", "logging")}
    cells = [cell for line in experiment_lines(**settings) for cell in compose_cells(line)]
    todo = [cell for cell in cells if not is_done(cell_folder(checked(cell)))]
    say(f"{plain['name']}: {len(cells)} cells, {len(cells) - len(todo)} done already")
    started = time.monotonic()
    failures = _train(todo)
    if todo:
        say(f"training took {duration(time.monotonic() - started)}")
    if len(failures) == len(cells):
        raise UserError(f"every cell failed; the first: {failures[0]}")
    verdicts = report(Path(plain["output"]) / plain["name"], **_judging(plain), command=_command("validate"))
    if failures:
        raise UserError(
            f"{len(failures)} of {len(cells)} cells failed, the rest is in the report; the first: {failures[0]}"
        )
    _end(verdicts)


def _judging(plain: dict[str, Any]) -> dict[str, Any]:
    if not 0 < plain["level"] < 0.5:
        raise UserError(f"level={plain['level']} is the chance of a wrong verdict; choose 0 < level < 0.5")
    shared = {key: plain[key] for key in ("infinite_draws", "level")}
    shared["kernels"] = open_store(plain["kernels"], plain["kernels_limit"])
    return shared | {"claims": claims_from(plain["claims"]), "logging_settings": plain["logging"]}


def _end(verdicts: pd.DataFrame) -> None:
    """Exit status ``CLAIM_FAILED`` and one line for each required claim that failed."""
    failed = failed_required(verdicts)
    for line in failed:
        say(f"ridgescope: {line}")
    if failed:
        raise SystemExit(CLAIM_FAILED)


def _train(cells: list[DictConfig]) -> list[str]:
    """Train the cells; one that fails leaves its message and the others go on."""
    if cells:
        seconds = sum(estimate_seconds(checked(cell)) for cell in cells)
        say(f"training and measuring {len(cells)} cells takes about {duration(seconds)} on this machine")
    failures = []
    with progress("training cells", len(cells)) as steps:
        for cell in cells:
            try:
                run_cell(cell)
            except UserError as error:
                failures.append(str(error))
                say(f"  failed: {error}")
            steps.advance()
    return failures


def _command(name: str) -> str:
    return " ".join(["ridgescope", name, *sys.argv[1:]])


def report(
    experiment: Path,
    *,
    infinite_draws: int,
    claims: dict[str, Claim],
    level: float,
    logging_settings: dict[str, Any],
    command: str,
    kernels: KernelStore | None = None,
) -> pd.DataFrame:
    """Measure, project, judge, write the page, and print the verdicts, which are returned."""
    started = time.monotonic()
    tables = project(experiment, infinite_draws=infinite_draws, kernels=kernels)
    verdicts = evaluate(tables.networks, claims, infinite=tables.infinite, stopping=tables.stopping, level=level)
    metadata = _metadata(experiment, tables, command)
    page = write_report(
        tables.networks,
        tables.spectra,
        metadata,
        experiment / "report",
        infinite=tables.infinite,
        verdicts=verdicts,
        attribution=tables.attribution,
        stopping=tables.stopping,
    )
    print_verdicts(verdicts, Console())
    if tables.unfinished:
        say(f"{len(tables.unfinished)} cells are not finished and not in the report: {', '.join(tables.unfinished)}")
    show(experiment, tables.networks, verdicts, logging_settings, time.monotonic() - started)
    say(f"analysis took {duration(time.monotonic() - started)}")
    print(f"\nreport: {page}")
    return verdicts


def _metadata(experiment: Path, tables: Tables, command: str) -> dict[str, Any]:
    facts = environment()
    networks = tables.networks
    return {
        "title": f"Ridgescope: {experiment.name}",
        "created": facts["created"],
        "command": command,
        "versions": {"ridgescope": facts["ridgescope"], "python": facts["python"], **facts["packages"]},
        "hardware": f"{facts['processor']}, {facts['cores']} cores" + (f", {facts['gpu']}" if facts["gpu"] else ""),
        "git commit": facts["commit"] or "installed package",
        "networks": len(networks),
        "cells": int(networks["run"].nunique()),
        "not finished": ", ".join(tables.unfinished) or "none",
    }


register()
