"""The batch scripts, as text.

The shell that Slurm starts is the one owner of the signals. Before the time limit it gets SIGUSR1 and passes it on;
the worker writes a checkpoint and exits with status 75; then the shell requeues its own array task, which continues
where it was. SIGTERM (scancel, the time limit itself, preemption) is passed on too but never answered with a requeue:
a cancelled job must stay cancelled, and Slurm requeues a preempted one by itself.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ridgescope.train.errors import Interrupted, UserError

_SIGNAL_STATUS = 128 + 10  # of a process that SIGUSR1 ended before it could listen; it had done nothing yet


def check_settings(cluster: dict[str, Any]) -> None:
    """Raise ``UserError`` for what sbatch would refuse later, or not at all."""
    positive = ("cpus", "time", "cells_per_job", "at_once", "analysis_time")
    for key in positive:
        if cluster[key] < 1:
            raise UserError(f"cluster.{key}={cluster[key]} must be at least 1")
    if cluster["max_running"] is not None and cluster["max_running"] < 1:
        raise UserError(f"cluster.max_running={cluster['max_running']} must be at least 1, or null for no limit")
    if cluster["gpus"] < 0 or cluster["max_requeues"] < 0:
        raise UserError("cluster.gpus and cluster.max_requeues must be 0 or more")
    if cluster["gpus"] and cluster["gres"]:
        raise UserError(
            f"cluster.gpus={cluster['gpus']} and cluster.gres={cluster['gres']} both ask for GPUs; keep one"
        )
    if not 10 <= cluster["signal_seconds"] < 60 * cluster["time"]:
        raise UserError(
            f"cluster.signal_seconds={cluster['signal_seconds']} must be at least 10 and less than the time limit of "
            f"{60 * cluster['time']} s"
        )
    if cluster["at_once"] > cluster["cells_per_job"]:
        raise UserError(
            f"cluster.at_once={cluster['at_once']} processes for cluster.cells_per_job={cluster['cells_per_job']} "
            f"cells; raise cells_per_job"
        )


def array_script(name: str, submission: Path, cluster: dict[str, Any]) -> str:
    """The script of an array job; its argument is the number of its first task."""
    lines = _header(f"ridgescope-{name}", submission / "logs" / "%A_%a.log", cluster)
    lines += [
        "#SBATCH --requeue",
        f"#SBATCH --signal=B:USR1@{cluster['signal_seconds']}",
        *_environment(cluster),
        f"""
task=$(($1 + SLURM_ARRAY_TASK_ID))
workers=()
for ((part = 0; part < {cluster["at_once"]}; part++)); do
  {_python(cluster)} -m ridgescope.cluster.worker {shlex.quote(str(submission))} "$task" "$part" &
  workers+=($!)
done
limit=0
trap 'limit=1; kill -USR1 "${{workers[@]}}" 2>/dev/null' USR1
trap 'kill -TERM "${{workers[@]}}" 2>/dev/null' TERM
status=0
for worker in "${{workers[@]}}"; do
  while kill -0 "$worker" 2>/dev/null; do wait "$worker"; done  # a trapped signal ends a wait early
  wait "$worker"
  code=$?
  [ $code = {_SIGNAL_STATUS} ] && code={Interrupted.status}
  # unfinished outranks failed: the failed ones are recorded, and skipped when the others go on
  if [ $code = {Interrupted.status} ] || [ $status = 0 ]; then status=$code; fi
done
if [ $status = {Interrupted.status} ] && [ $limit = 1 ]; then
  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {cluster["max_requeues"]} ]; then
    echo "requeueing ${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
    if scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"; then
      sleep 120  # until Slurm ends this job
    else
      echo "not requeued: submit the sweep again"
    fi
  else
    echo "requeued {cluster["max_requeues"]} times without an end: raise cluster.time or cluster.max_requeues"
  fi
fi
exit $status""",
    ]
    return "\n".join(lines) + "\n"


def analysis_script(name: str, submission: Path, cluster: dict[str, Any], words: Sequence[str]) -> str:
    """The job after the arrays: what became of the cells, then ``ridgescope analyse`` of those that are there.

    ``words`` begin with the options, which argparse wants before the first override. The exit status is that of
    ``analyse``: 3 where a required claim fails.
    """
    settings = cluster | {"time": cluster["analysis_time"], "mem": cluster["analysis_mem"], "at_once": 1}
    folder = f"folder={submission.parents[1]}"
    lines = _header(f"ridgescope-{name}-analysis", submission / "logs" / "analysis-%j.log", settings)
    lines += [
        *_environment(settings),
        f"{_python(cluster)} -m ridgescope status {shlex.quote(folder)}",
        f"exec {_python(cluster)} -m ridgescope analyse {shlex.join([*words, folder])}",
    ]
    return "\n".join(lines) + "\n"


def _header(name: str, log: Path, cluster: dict[str, Any]) -> list[str]:
    options = {
        "job-name": name,
        "output": str(log),
        "open-mode": "append",
        "account": cluster["account"],
        "partition": cluster["partition"],
        "qos": cluster["qos"],
        "constraint": cluster["constraint"],
        "gpus": cluster["gpus"] or None,
        "gres": cluster["gres"],
        "nodes": 1,
        "cpus-per-task": cluster["cpus"],
        "mem": cluster["mem"],
        "time": cluster["time"],
    }
    lines = ["#!/bin/bash", *(f'#SBATCH --{key}="{value}"' for key, value in options.items() if value is not None)]
    return [*lines, *(f"#SBATCH {option}" for option in cluster["extra"])]


def _environment(cluster: dict[str, Any]) -> list[str]:
    threads = max(1, cluster["cpus"] // cluster["at_once"])
    return [*cluster["setup"], f"export OMP_NUM_THREADS={threads} PYTHONUNBUFFERED=1"]


def _python(cluster: dict[str, Any]) -> str:
    return shlex.quote(cluster["python"] or sys.executable)
