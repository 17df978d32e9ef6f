"""What an analysis shows in wandb: verdicts, the tables behind the dashboard's charts, and the report as an artifact.

    verdicts   a row per claim, model and width: the words and numbers of verdicts.parquet
    kappa      a row per cell: width, P, ridge, predicted and measured kappa of its kernel at initialisation
    risk       a row per cell and curve: test risk against width
    links      a row per cell and link: the relative deviation that the link leaves

A cell is named ``curve`` by all but its width, so that a chart has one line per curve.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from ridgescope.analysis.cells import cells
from ridgescope.train.wandb_logging import finish, make_logger

VERDICTS, KAPPA, RISK, LINKS = "verdicts", "kappa", "risk", "links"

_RISKS = {
    "network_test": "network",
    "krr_test": "its kernel",
    "infinite_test": "infinite width",
    "theory_width_test": "theory with N_eff",
    "theory_test": "theory",
}
# what the link ends in, divided by what it starts from
_LINKS = {
    "theory → infinite width": ("infinite_test", "theory_test"),
    "infinite → finite width": ("krr_test", "infinite_test"),
    "kernel → network": ("network_test", "krr_test"),
}


def show(
    experiment: Path, networks: pd.DataFrame, verdicts: pd.DataFrame, settings: dict[str, Any], seconds: float
) -> None:
    """Log an analysis as the run ``<experiment>-analysis``; nothing where wandb is disabled."""
    logger = make_logger(
        experiment / "report",
        mode=settings["wandb"],
        project=settings["project"],
        entity=settings["entity"],
        group=experiment.name,
        job_type="analysis",
        name=f"{experiment.name}-analysis",
        run_id=f"{experiment.name}-analysis",
        tags=settings["tags"],
        config={"experiment": experiment.name, "networks": len(networks), "cells": int(networks["run"].nunique())},
    )
    if logger is None:
        return
    import wandb

    frames = tables(networks, verdicts)
    logger.experiment.log({name: wandb.Table(dataframe=frame) for name, frame in frames.items()})
    for verdict, count in verdicts["verdict"].value_counts().items():
        logger.experiment.summary[f"verdicts/{verdict}"] = int(count)
    logger.experiment.summary["analysis/seconds"] = seconds
    logger.experiment.log_artifact(report_artifact(experiment))
    finish(logger)


def tables(networks: pd.DataFrame, verdicts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables by name, with plain columns only."""
    table = cells(networks)
    table["curve"] = [
        f"{row.setting}, P {row.P}, ridge {row.ridge:g}" for row in table[["setting", "P", "ridge"]].itertuples()
    ]
    columns = ["curve", "width", "P", "ridge"]
    kappa = table[columns].assign(predicted=table["theory_width_kappa1"], measured=table["kappa_entk"])
    risks = [
        table[columns].assign(curve=f"{label}: " + table["curve"], risk=table[column])
        for column, label in _RISKS.items()
    ]
    links = [
        table[columns].assign(curve=f"{label}: " + table["curve"], link=label, deviation=table[end] / table[start] - 1)
        for label, (end, start) in _LINKS.items()
    ]
    flat = verdicts.drop(columns="runs").astype({"scope": str})
    return {
        VERDICTS: flat,
        KAPPA: kappa.dropna().reset_index(drop=True),
        RISK: pd.concat(risks).dropna().reset_index(drop=True),
        LINKS: pd.concat(links).dropna().reset_index(drop=True),
    }


def report_artifact(experiment: Path) -> Any:
    """The page, its figures and every Parquet table, as one versioned artifact."""
    import wandb

    artifact = wandb.Artifact(f"{experiment.name}-report", type="report")
    report = experiment / "report"
    for path in sorted([report / "index.html", *report.glob("*.parquet"), *report.glob("figures/*")]):
        artifact.add_file(str(path), name=str(path.relative_to(report)))
    return artifact
