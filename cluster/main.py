"""``ridgescope submit``, ``status``, ``sync`` and ``dashboard``."""

from dataclasses import fields
from pathlib import Path

import hydra
from omegaconf import DictConfig

from ridgescope.analysis.config import AnalyseConfig
from ridgescope.cluster.config import register
from ridgescope.cluster.status import overview, unfinished
from ridgescope.cluster.submission import PlannedCell, Submission, load_all
from ridgescope.train.config import cell_name, checked
from ridgescope.train.config import register as register_train
from ridgescope.train.entry import one_line_errors
from ridgescope.train.files import write_json
from ridgescope.train.progress import say


@hydra.main(version_base="1.3", config_path="pkg://ridgescope.conf", config_name="submit")
@one_line_errors
def submit(config: DictConfig) -> None:
    """Submit what is missing of an experiment, and return at once."""
    from ridgescope.analysis.cost import estimate_seconds
    from ridgescope.cluster.submit import submit as submit_cells
    from ridgescope.train.sources import load_source
    from ridgescope.train.sweep import compose_cells, expand, experiment_lines

    plain = checked(config)
    settings = {key: plain[key] for key in ("sweeps", "common", "overrides", "name", "output", "logging")}
    cells = []
    for line in experiment_lines(**settings):
        for overrides, composed in zip(expand(line), compose_cells(line), strict=True):
            cell = checked(composed)
            cells.append(PlannedCell(cell_name(cell), overrides, cell, round(estimate_seconds(cell), 3)))
    # on this machine: the nodes of many clusters reach no network, and all jobs would download at once
    for source in {(c.config["data"]["name"], c.config["data"]["root"], c.config["data"]["download"]) for c in cells}:
        load_source(source[0], root=source[1], download=source[2])
    analysis = {field.name: plain[field.name] for field in fields(AnalyseConfig) if field.name in plain}
    experiment = Path(plain["output"]) / plain["name"]
    _tell(experiment, submit_cells(experiment, cells, plain["cluster"], analysis))


@hydra.main(version_base="1.3", config_path="pkg://ridgescope.conf", config_name="status")
@one_line_errors
def status(config: DictConfig) -> None:
    """Print the state of an experiment's cells; on request submit again what failed or is missing."""
    plain = checked(config)
    experiment = Path(plain["folder"])
    state = overview(experiment)
    print("\n".join(state.lines()))
    again = unfinished(state.states)
    if plain["resubmit"]:
        from ridgescope.cluster.submit import submit as submit_cells  # imports torch; looking need not wait for it

        last = load_all(experiment)[-1].settings
        _tell(experiment, submit_cells(experiment, again, last["cluster"], last["analysis"]))
    elif again:
        print(f"submit these {len(again)} again: ridgescope status folder={experiment} resubmit=true")


@hydra.main(version_base="1.3", config_path="pkg://ridgescope.conf", config_name="sync")
@one_line_errors
def sync(config: DictConfig) -> None:
    """Upload the offline wandb runs of an experiment."""
    from ridgescope.cluster.sync import offline_runs, upload

    plain = checked(config)
    runs = offline_runs(Path(plain["folder"]), plain["online"])
    for run in runs:
        print(run)
    if not plain["dry_run"]:
        upload(runs)
    print(f"{len(runs)} runs {'to upload' if plain['dry_run'] else 'uploaded'}")


@hydra.main(version_base="1.3", config_path="pkg://ridgescope.conf", config_name="dashboard")
@one_line_errors
def dashboard(config: DictConfig) -> None:
    """Save the wandb workspace of an experiment, or write it into a file."""
    from ridgescope.cluster.dashboard import save, serialised, workspace

    plain = checked(config)
    group = Path(plain["folder"]).name
    if plain["out"] is None:
        print(f"dashboard: {save(plain['project'], plain['entity'], group)}")
    else:
        write_json(Path(plain["out"]), serialised(workspace(plain["project"], plain["entity"] or "", group)))


def _tell(experiment: Path, submission: Submission | None) -> None:
    if submission is None:
        say(f"nothing to submit; ridgescope analyse folder={experiment} measures what is there")
        return
    arrays = ", ".join(f"{job.id} ({job.count} tasks)" for job in submission.arrays)
    print(f"submitted array {arrays}, then analysis {submission.analysis}; logs in {submission.folder / 'logs'}")
    print(f"watch it: ridgescope status folder={experiment}")


register()
register_train()
