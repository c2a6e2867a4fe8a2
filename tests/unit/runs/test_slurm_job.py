"""The script of a Slurm job, with programs of the test's own in place of Slurm's; real ones are in tests/cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llama_scale.runs.folder import RunFolder
from llama_scale.runs.records import Status, Submission, load_record
from llama_scale.runs.slurm_job import MAX_IDLE
from tests.live_runs import environment, wait_for
from tests.unit.launchers.bundles import write_program
from tests.unit.runs.conftest import MakeRun

SLURM = "launcher={kind: slurm}"
_SAYS = (
    'echo "{\\"state\\": \\"%s\\", \\"exit_code\\": %d, \\"message\\": \\"%s\\"%s}" > "$run/attempts/000/verdict.json"'
)
SAVED = _SAYS % ("preempted", 75, "state saved", "")
GRACEFUL = f"trap '{SAVED}; exit 75' TERM; touch \"$run/ready\"; while :; do sleep 0.05; done"
LOST = '\\"first_failure\\": {\\"rank\\": null, \\"kind\\": \\"node-lost\\", \\"error\\": \\"host 1\\"}'


def job(
    run: RunFolder,
    tmp_path: Path,
    *,
    state: str = "RUNNING",
    jobs: tuple[str, ...] = ("7",),
    number: str = "7",
    **more: str,
) -> subprocess.Popen[bytes]:
    """Start the script of a job; as Slurm does, a requeue ends it."""
    record = Submission(launcher="slurm", jobs=jobs, submitted_utc="", **more)  # type: ignore[arg-type]
    run.submission.write_text(record.model_dump_json())
    show = f'[[ $2 == show ]] && {{ echo "JobId=7 JobState={state} Reason=None"; exit; }}'
    write_program(tmp_path / "bin", "scontrol", f'{show}\necho "$@" >> "$0.argv"; kill -KILL $PPID')
    write_program(tmp_path / "bin", "scancel", 'echo "$@" >> "$0.argv"')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    with run.supervisor_log.open("ab") as log:
        command = [sys.executable, "-P", "-m", "llama_scale.runs.slurm_job", str(run.path)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment(PATH=path, SLURM_JOB_ID=number))


def status(run: RunFolder) -> Status:
    found = load_record(run.status, Status)
    assert found is not None
    return found


def called(tmp_path: Path, program: str) -> list[str]:
    file = tmp_path / "bin" / f"{program}.argv"
    return file.read_text().splitlines() if file.exists() else []


def preempt(process: subprocess.Popen[bytes], run: RunFolder) -> int:
    wait_for((run.path / "ready").exists)
    process.send_signal(signal.SIGUSR1)
    return process.wait(60)


def test_finished_run_cancels_the_rest_of_its_chain(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("exit 0", SLURM)
    assert job(run, tmp_path, jobs=("6", "7", "8", "9")).wait(60) == 0
    assert status(run).state == "succeeded" and run.done.is_file()
    assert called(tmp_path, "scancel") == ["--state=PENDING 8 9"]


def test_preempted_run_is_queued_again(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(GRACEFUL, SLURM)
    assert preempt(job(run, tmp_path), run) == -signal.SIGKILL
    assert called(tmp_path, "scontrol") == ["requeue 7"]
    assert status(run).state == "queued" and "state saved; job 7 is queued again" in status(run).message


def test_job_that_slurm_ends_already_is_not_revived(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(GRACEFUL, SLURM)
    assert preempt(job(run, tmp_path, state="COMPLETING"), run) == 75
    assert called(tmp_path, "scontrol") == []
    assert status(run).state == "preempted" and "(Slurm ends job 7)" in status(run).message


def test_preempted_job_of_a_chain_leaves_the_run_to_the_next(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(GRACEFUL, SLURM)
    assert preempt(job(run, tmp_path, jobs=("7", "8")), run) == 75
    assert status(run).state == "queued" and "job 8 goes on" in status(run).message
    assert called(tmp_path, "scontrol") == [] and called(tmp_path, "scancel") == []


def test_run_that_may_not_be_requeued_ends_preempted(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(GRACEFUL, "launcher={kind: slurm, requeue: false}")
    assert preempt(job(run, tmp_path), run) == 75
    assert status(run).state == "preempted" and called(tmp_path, "scontrol") == []


def test_run_without_progress_is_not_queued_for_ever(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(GRACEFUL, SLURM)
    again = {"idle_requeues": MAX_IDLE - 1, "requeued_from": ""}
    assert preempt(job(run, tmp_path, **again), run) == 75  # type: ignore[arg-type]
    assert status(run).state == "preempted"
    assert f"not queued again: {MAX_IDLE} times in a row no checkpoint was completed" in status(run).message


def test_requests_to_stop_end_the_run(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(GRACEFUL, SLURM)
    process = job(run, tmp_path, jobs=("7", "8"))
    wait_for((run.path / "ready").exists)
    run.stop.touch()
    assert process.wait(60) == 75
    assert status(run).state == "stopped" and called(tmp_path, "scancel") == ["--state=PENDING 8"]


@pytest.mark.parametrize("kind", ["node-lost", "crash"])
def test_lost_node_is_no_fault_of_the_run(make_run: MakeRun, tmp_path: Path, kind: str) -> None:
    said = _SAYS % ("failed", 5, "host 1 is gone", f", {LOST}".replace("node-lost", kind))
    run = make_run(f"{said}; exit 5", SLURM)
    code = job(run, tmp_path).wait(60)
    if kind == "node-lost":
        assert code == -signal.SIGKILL and called(tmp_path, "scontrol") == ["requeue 7"]
        assert status(run).state == "queued"
    else:
        assert code == 5 and called(tmp_path, "scontrol") == []
        assert status(run).state == "failed"


def test_refused_requeue_is_told(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(GRACEFUL, SLURM)
    process = job(run, tmp_path)
    refuse = '[[ $2 == show ]] && { echo "JobState=RUNNING"; exit; }; echo "slurm error: not allowed" >&2; exit 1'
    write_program(tmp_path / "bin", "scontrol", refuse)
    assert preempt(process, run) == 75
    assert status(run).state == "preempted" and "but scontrol refused: slurm error: not allowed" in status(run).message


@pytest.mark.parametrize("state", ["succeeded", "failed", "stopped"])
def test_job_of_an_ended_run_does_nothing(make_run: MakeRun, tmp_path: Path, state: str) -> None:
    run = make_run("exit 1", SLURM)
    ended = {"state": state, "supervisor_pid": 1, "started_utc": "", "updated_utc": "", "message": "over"}
    run.status.write_text(json.dumps(ended))
    assert job(run, tmp_path).wait(60) == 0
    assert run.attempt_numbers() == [] and "nothing left to do" in run.supervisor_log.read_text()


def test_outside_a_job_it_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("exit 1", SLURM)
    assert job(run, tmp_path, number="").wait(60) == 5
    assert "SLURM_JOB_ID is not set" in run.supervisor_log.read_text()
