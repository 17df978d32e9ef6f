"""What is done is skipped, what is under way is left alone, what failed says why: without Slurm."""

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from ridgescope.cluster import slurm
from ridgescope.cluster.config import ClusterConfig
from ridgescope.cluster.slurm import SlurmError, Task, ended, queued
from ridgescope.cluster.status import cell_state, overview
from ridgescope.cluster.submission import ArrayJob, PlannedCell, Submission, create, load, load_all
from ridgescope.cluster.submit import plan, submit
from ridgescope.train.errors import UserError

Make = Callable[..., Submission]
Finish = Callable[..., None]
Tool = Callable[[str, str], None]


def cells(names: str) -> list[PlannedCell]:
    return [PlannedCell(name, [], {}, 10.0) for name in names]


def test_a_submission_is_read_back_as_it_was_written(submission: Make) -> None:
    made = submission()
    made.arrays = [ArrayJob(7, 0, 2), ArrayJob(8, 2, 1)]
    made.analysis = 9
    made.save()
    assert load(made.folder) == made


def test_two_submissions_of_one_moment_have_two_folders(submission: Make) -> None:
    assert [submission().folder.name for _ in range(3)] == ["001", "002", "003"]


def test_cells_know_their_task_and_job_over_a_split_array(submission: Make) -> None:
    made = submission()
    made.arrays = [ArrayJob(7, 0, 2), ArrayJob(8, 2, 1)]
    assert made.num_tasks == 3
    assert [[cell.name for cell in made.task_cells(task)] for task in range(3)] == [["a", "b"], ["c", "d"], ["e"]]
    assert [made.job_of(cell) for cell in range(5)] == [(7, 0), (7, 0), (7, 1), (7, 1), (8, 0)]
    made.arrays.pop()  # sbatch refused the second
    assert made.job_of(4) is None


def test_the_state_of_a_cell(submission: Make, finish: Finish) -> None:
    made = submission()
    made.arrays = [ArrayJob(7, 0, 3)]
    finish("a")
    finish("b", "width must be at least 1")
    finish("c", "begun")
    busy = {(7, 1): Task("RUNNING"), (7, 2): Task("PENDING", "Priority")}
    states = [cell_state(made, index, busy, {}).state for index in range(5)]
    assert states == ["done", "failed", "running", "waiting", "waiting"]
    assert cell_state(made, 1, busy, {}).reason == "width must be at least 1"
    gone = [cell_state(made, index, {}, {}).state for index in range(5)]
    assert gone == ["done", "failed", "failed", "missing", "missing"]


@pytest.mark.parametrize(
    ("account", "reason"),
    [
        ("CANCELLED", "cancelled"),
        ("TIMEOUT", "reached the time limit; raise cluster.time"),
        ("OUT_OF_MEMORY", "ran out of memory; raise cluster.mem"),
        ("NODE_FAIL", "its node was lost"),
        ("FAILED", "failed, exit code 0:9"),
    ],
)
def test_a_killed_cell_has_its_reason_from_the_accounts_and_the_log(
    account: str, reason: str, submission: Make, finish: Finish
) -> None:
    made = submission()
    made.arrays = [ArrayJob(7, 0, 3)]
    finish("c", "begun")
    (made.folder / "logs" / "7_1.log").write_text("training c\nslurmstepd: error: *** JOB 7 ON n1 KILLED ***\n")
    state = cell_state(made, 2, {}, {(7, 1): Task(account, "0:9")})
    assert state.state == "failed"
    assert state.reason.startswith(reason)
    assert "*** JOB 7 ON n1 KILLED ***" in state.reason


def test_what_a_job_did_not_come_to_is_missing_and_what_no_job_could_begin_has_failed(
    submission: Make, finish: Finish
) -> None:
    made = submission()
    made.arrays = [ArrayJob(7, 0, 3)]
    finish("a", "begun")
    (made.folder / "logs" / "7_1.log").write_text("module: command not found: error\n")
    states = [
        cell_state(made, index, {}, {(7, 0): Task("FAILED", "0:9"), (7, 1): Task("FAILED", "127:0")})
        for index in range(4)
    ]
    assert [state.state for state in states] == ["failed", "missing", "failed", "failed"]
    assert states[1].reason == "its job ended before it came to it"
    (made.folder / "logs" / "7_0.log").write_text("training a\ntraining b\nfailed: b: cannot write b (File exists)\n")
    assert cell_state(made, 1, {}, {(7, 0): Task("FAILED", "0:9")}).state == "failed"  # though it has no folder
    assert "module: command not found" in states[2].reason


def test_a_failure_of_an_earlier_submission_does_not_count_for_a_later_one(submission: Make, finish: Finish) -> None:
    first = submission("a")
    finish("a", "disk full")
    failed = first.folder.parents[1] / "cells" / "a" / "failed.json"
    os.utime(failed, (1, 1))
    assert submission("a").failure(PlannedCell("a", [], {})) is None
    os.utime(failed)
    assert load_all(first.folder.parents[1])[-1].failure(PlannedCell("a", [], {})) == "disk full"


def test_a_failure_that_could_not_be_written_whole_is_a_failure(submission: Make, finish: Finish) -> None:
    made = submission("a")
    finish("a", "disk full")
    (made.folder.parents[1] / "cells" / "a" / "failed.json").write_text("")
    assert cell_state(made, 0, {}, {}).reason == "failed, without a message"


def test_only_what_is_missing_or_failed_is_submitted_again(submission: Make, finish: Finish, tool: Tool) -> None:
    made = submission()
    made.arrays = [ArrayJob(7, 0, 3)]
    made.save()
    finish("a")
    finish("b", "boom")
    finish("c", "begun")
    tool("squeue", "echo '7|1|RUNNING|None'")
    tool("sacct", "echo '7_0|FAILED|1:0'; echo '7_2|CANCELLED by 0|0:0'")
    decided = plan(made.folder.parents[1], cells("abcdef"))
    assert [cell.name for cell in decided.todo] == ["b", "e", "f"]
    assert (decided.done, decided.underway, decided.busy) == (1, 2, [7])
    seen = overview(made.folder.parents[1])
    assert [state.state for state in seen.states] == ["done", "failed", "running", "waiting", "missing"]
    assert seen.lines()[0] == "sweep: 5 cells: 1 done, 1 running, 1 waiting, 1 failed, 1 missing; about 10 s left"
    assert "  failed  b: boom" in seen.lines()


def test_without_a_queue_the_state_is_read_from_the_files(
    submission: Make, finish: Finish, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = submission()
    made.arrays = [ArrayJob(7, 0, 3)]
    made.save()
    finish("a")
    monkeypatch.setenv("PATH", "")
    seen = overview(made.folder.parents[1])
    assert [state.state for state in seen.states] == ["done", "missing", "missing", "missing", "missing"]
    assert any("squeue is not on the PATH" in note for note in seen.notes)


def test_without_accounts_the_queue_and_the_files_still_say_most(submission: Make, finish: Finish, tool: Tool) -> None:
    made = submission()
    made.arrays = [ArrayJob(7, 0, 3)]
    made.save()
    finish("a", "begun")
    tool("squeue", "echo '7|1|RUNNING|None'")
    tool("sacct", "echo 'sacct: error: Slurm accounting storage is disabled' >&2; exit 1")
    seen = overview(made.folder.parents[1])
    assert [state.state for state in seen.states] == ["failed", "missing", "waiting", "waiting", "missing"]
    assert seen.states[0].reason == "its job is gone"
    note = "the accounts are not known, so some reasons are missing: sacct failed: Slurm accounting storage is disabled"
    assert seen.notes == [note]


def test_submitting_without_slurm_says_what_else_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SlurmError, match=r"sbatch is not on the PATH; .*`ridgescope validate` runs the same sweep"):
        submit(tmp_path / "sweep", cells("ab"), asdict(ClusterConfig()), {})
    assert not (tmp_path / "sweep").exists()


def test_a_long_sweep_is_split_and_an_accepted_part_is_never_forgotten(tmp_path: Path, tool: Tool) -> None:
    tool("scontrol", "echo 'MaxArraySize            = 3'")
    tool("squeue", "")
    tool("sbatch", f'echo "$@" >> {tmp_path}/calls; n=$(wc -l < {tmp_path}/calls); [ $n -lt 3 ] && echo $((40 + n)) '
         "|| { echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; }")  # fmt: skip
    with pytest.raises(UserError, match=r"QOSMaxSubmitJobPerUserLimit; 6 of 8 tasks were accepted"):
        submit(tmp_path / "sweep", cells("abcdefgh"), asdict(ClusterConfig(max_running=2)), {})
    kept = load_all((tmp_path / "sweep").resolve())[0]
    assert kept.arrays == [ArrayJob(41, 0, 3), ArrayJob(42, 3, 3)]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == ["--array=0-2%2", "--array=0-2%2", "--array=0-1%2"]
    assert [call.split()[-1] for call in calls] == ["0", "3", "6"]  # the first task of each part


def test_the_analysis_waits_for_all_parts_and_replaces_an_older_one(tmp_path: Path, tool: Tool) -> None:
    tool("scontrol", "echo 'MaxArraySize = 1'")
    tool("sbatch", f'echo "$@" >> {tmp_path}/calls; wc -l < {tmp_path}/calls')
    tool("squeue", "for i in 3; do echo $i'|N/A|PENDING|Dependency'; done")
    tool("scancel", f"echo $@ > {tmp_path}/cancelled")
    settings = asdict(ClusterConfig()), {"infinite_draws": 4, "logging": {"tags": ["a b"]}, "claims": {"x": {}}}
    first = submit(tmp_path / "sweep", cells("ab"), *settings)
    assert first is not None
    assert first.analysis == 3
    assert "--dependency=afterany:1:2" in (tmp_path / "calls").read_text()
    words = shlex.split((first.folder / "analyse.sh").read_text().splitlines()[-1])
    understood = get_args_parser().parse_args(words[words.index("analyse") + 1 :])
    assert understood.config_dir == str(first.folder / "conf")
    place = f"folder={tmp_path / 'sweep'}"
    assert understood.overrides == ["claims=submitted", "infinite_draws=4", 'logging.tags=["a b"]', place]
    assert json.loads((first.folder / "conf" / "claims" / "submitted.yaml").read_text()) == {"x": {}}
    submit(tmp_path / "sweep", cells("abc"), *settings)
    assert (tmp_path / "cancelled").read_text() == "3\n"


def test_a_client_that_waits_for_a_dead_controller_is_not_waited_for(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool("squeue", "sleep 60")
    monkeypatch.setattr(slurm, "_PATIENCE", 0.2)
    with pytest.raises(SlurmError, match=r"squeue did not answer within 0.2 s; check `scontrol ping`"):
        queued([7])


def test_slurms_own_words_are_one_line(tool: Tool) -> None:
    tool("sacct", "echo 'sacct: error: Slurm accounting storage is disabled' >&2; echo >&2; exit 1")
    with pytest.raises(SlurmError, match=r"^sacct failed: Slurm accounting storage is disabled$"):
        ended([7])
    tool("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert queued([7]) == {}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "sweep").write_text("a file where a folder is wanted")
    with pytest.raises(UserError, match=r"cannot write .*sweep/submissions/001 \(Not a directory\); choose output="):
        create(tmp_path / "sweep", cells("a"), {"cluster": {"cells_per_job": 1}})


def test_damaged_files_of_a_submission_are_named(submission: Make) -> None:
    made = submission()
    (made.folder / "cells.jsonl").write_text('{"name": "a"')
    with pytest.raises(UserError, match=r"cannot read .*cells.jsonl .*; submit the sweep again"):
        load(made.folder)
    (made.folder / "submission.json").write_text(json.dumps([]))
