"""From a sweep to its jobs: skip what is done or under way, write it down, hand it to Slurm, return."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ridgescope.cluster.script import analysis_script, array_script, check_settings
from ridgescope.cluster.slurm import SlurmError, cancel, max_array_size, queued, submit_script
from ridgescope.cluster.status import cell_state
from ridgescope.cluster.submission import ArrayJob, PlannedCell, Submission, alone, create, load_all
from ridgescope.train.errors import UserError
from ridgescope.train.files import write_text
from ridgescope.train.progress import say
from ridgescope.train.provenance import git_commit


@dataclass(frozen=True)
class Plan:
    """Cells to submit, and how many were done or under way already; ``busy`` are the array jobs under way."""

    todo: list[PlannedCell]
    done: int
    underway: int
    busy: list[int]


def plan(experiment: Path, cells: Sequence[PlannedCell]) -> Plan:
    """Each cell once, without those that are finished or in the queue."""
    unique = {cell.name: cell for cell in cells}
    todo = {name: cell for name, cell in unique.items() if not (experiment / "cells" / name / "done.json").is_file()}
    earlier = load_all(experiment)
    queue = queued([job.id for submission in earlier for job in submission.arrays])
    busy: set[int] = set()
    underway = set()
    for submission in earlier:
        for index, cell in enumerate(submission.cells):
            key = submission.job_of(index)
            if cell.name in todo and key in queue and key is not None:
                if cell_state(submission, index, queue, {}).state in ("running", "waiting"):
                    underway.add(cell.name)
                    busy.add(key[0])
    return Plan(
        [cell for name, cell in todo.items() if name not in underway],
        len(unique) - len(todo),
        len(underway),
        sorted(busy),
    )


def submit(
    experiment: Path, cells: Sequence[PlannedCell], cluster: dict[str, Any], analysis: dict[str, Any]
) -> Submission | None:
    """Submit what is to be done, and the analysis after it; None if there is nothing.

    ``cluster`` are the values of ``ClusterConfig``, ``analysis`` those of ``AnalyseConfig`` but for the folder.
    """
    check_settings(cluster)
    for tool in ("sbatch", "squeue", "scontrol"):
        if shutil.which(tool) is None:
            raise SlurmError(
                f"{tool} is not on the PATH; load your site's Slurm module or log in to a submit node "
                f"(`ridgescope validate` runs the same sweep without Slurm)"
            )
    experiment = experiment.resolve()
    with alone(experiment):
        decided = plan(experiment, cells)
        words = [f"{decided.done} done", f"{decided.underway} under way", f"{len(decided.todo)} to submit"]
        say(f"{experiment.name}: {sum((decided.done, decided.underway, len(decided.todo)))} cells: {', '.join(words)}")
        if not decided.todo:
            return None
        limit = max_array_size()
        settings = {"cluster": cluster, "analysis": analysis}
        submission = create(experiment, decided.todo, settings, git_commit())
        name, folder = experiment.name, submission.folder
        write_text(folder / "array.sh", array_script(name, folder, cluster))
        write_text(folder / "analyse.sh", analysis_script(name, folder, cluster, _analysis_words(folder, analysis)))
        try:
            for first in range(0, submission.num_tasks, limit):
                count = min(limit, submission.num_tasks - first)
                running = f"%{cluster['max_running']}" if cluster["max_running"] else ""
                job = submit_script(folder / "array.sh", str(first), options=[f"--array=0-{count - 1}{running}"])
                submission.arrays.append(ArrayJob(job, first, count))
                submission.save()  # at once: what Slurm has accepted must be known if the next call fails
            after = ":".join(str(job) for job in [*decided.busy, *(job.id for job in submission.arrays)])
            submission.analysis = submit_script(folder / "analyse.sh", options=[f"--dependency=afterany:{after}"])
            submission.save()
        except SlurmError as error:
            accepted = sum(job.count for job in submission.arrays)
            raise UserError(
                f"{error}; {accepted} of {submission.num_tasks} tasks were accepted and will run, the same command "
                f"submits the rest"
            ) from None
        _replace_analysis(experiment, submission)
    return submission


def _analysis_words(folder: Path, analysis: dict[str, Any]) -> list[str]:
    """The settings as they are now, as overrides; the claims as a configuration group of the submission's own."""
    write_text(folder / "conf" / "claims" / "submitted.yaml", json.dumps(analysis.get("claims", {}), indent=1))
    words = ["--config-dir", str(folder / "conf"), "claims=submitted"]
    for key, value in analysis.items():
        if isinstance(value, dict):
            words += [f"{key}.{k}={json.dumps(v)}" for k, v in value.items() if key != "claims"]
        else:
            words.append(f"{key}={json.dumps(value)}")
    return words


def _replace_analysis(experiment: Path, newest: Submission) -> None:
    """An older analysis that still waits would repeat the work of the new one."""
    older = [s.analysis for s in load_all(experiment) if s.analysis is not None and s.folder != newest.folder]
    for (job, _), task in queued(older).items():
        if task.state == "PENDING":
            cancel(job)
