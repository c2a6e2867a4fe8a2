"""Runs that a scheduler keeps, seen from other terminals; programs of the test's own stand in for the scheduler's."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from llama_scale.errors import LaunchError
from llama_scale.launchers.queue import JobView
from llama_scale.runs import submission
from llama_scale.runs.find import list_runs
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.records import Submission
from llama_scale.runs.view import GONE, look
from tests.live_runs import run_cli, write_spec
from tests.unit.launchers.bundles import write_program
from tests.unit.runs.conftest import MakeRun

WAITING, RUNNING, ENDED = ("PENDING Reason=Priority", "RUNNING Reason=None", "TIMEOUT Reason=None")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs of Slurm: the file ``state`` says what scontrol tells of each job."""
    folder = tmp_path / "bin"
    write_program(folder, "sbatch", "echo 7")
    write_program(folder, "scancel", 'echo "$@" >> "$0.argv"; echo "CANCELLED Reason=None" > "${0%/*}/state"')
    write_program(folder, "scontrol", 'echo "JobId=7 JobState=$(cat "${0%/*}/state")"')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    submission._answers.clear()
    (folder / "state").write_text(WAITING)
    return folder


def launch(tmp_path: Path, *words: str) -> RunFolder:
    spec = write_spec(tmp_path / "spec")
    done = run_cli("launch", spec, "--runs-dir", tmp_path / "runs", "--set", "launcher={kind: slurm}", *words)
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(tmp_path / "runs")
    assert done.stdout == f"{run.path}\n" and "queued as slurm job 7; it goes on without this machine" in done.stderr
    return run


def test_queued_run_is_seen_and_taken_back(tmp_path: Path, slurm: Path) -> None:
    run = launch(tmp_path)

    shown = json.loads(run_cli("status", run.path, "--json").stdout)
    assert shown["state"] == "queued"
    assert shown["message"] == "queued as slurm job 7; Slurm job 7 is PENDING (Priority)"
    assert " queued " in run_cli("runs", "--runs-dir", tmp_path / "runs").stdout
    again = run_cli("resume", run.path)
    assert again.returncode == 5 and "end it first with `llama-scale stop" in again.stderr
    stopped = run_cli("stop", run.path)
    assert stopped.returncode == 0 and "taken out of the queue before it ran (7)" in stopped.stderr
    assert (slurm / "scancel.argv").read_text() == "7\n"
    assert look(run).state == "stopped"
    resumed = run_cli("resume", run.path)
    assert resumed.returncode == 0, resumed.stderr


def test_refused_submission_is_a_failed_run(tmp_path: Path, slurm: Path) -> None:
    write_program(slurm, "sbatch", "echo 'sbatch: error: no such account' >&2; exit 1")
    spec = write_spec(tmp_path / "spec")
    done = run_cli("launch", spec, "--runs-dir", tmp_path / "runs", "--set", "launcher={kind: slurm}")
    (run,) = list_runs(tmp_path / "runs")
    assert done.returncode == 5 and "sbatch refused: sbatch: error: no such account" in done.stderr
    assert look(run).state == "failed"


def _write(run: RunFolder, state: str, *, age_s: float = 0.0) -> RunFolder:
    values = {"state": state, "supervisor_pid": 1, "started_utc": "", "updated_utc": "", "message": "words", "step": 3}
    run.status.write_text(json.dumps(values))
    os.utime(run.status, (time.time() - age_s,) * 2)
    run.submission.write_text(Submission(launcher="slurm", jobs=("7",), submitted_utc="").model_dump_json())
    return run


@pytest.mark.parametrize(
    ("written", "scheduler", "state"),
    [
        (("queued", 0), WAITING, "queued"),
        (("queued", 0), RUNNING, "starting"),
        (("queued", 0), ENDED, GONE),
        (("running", 0), ENDED, "running"),  # a fresh word of the supervisor counts
        (("running", 100), RUNNING, "running"),
        (("running", 100), ENDED, GONE),
        (("running", 100), WAITING, "queued"),
        (("preempted", 0), WAITING, "queued"),  # Slurm queued it again by itself
        (("preempted", 0), ENDED, "preempted"),
        (("succeeded", 100), ENDED, "succeeded"),
    ],
)
def test_state_is_what_folder_and_scheduler_say_together(
    make_run: MakeRun, slurm: Path, written: tuple[str, float], scheduler: str, state: str
) -> None:
    run = _write(make_run("exit 0", "launcher={kind: slurm}"), written[0], age_s=written[1])
    (slurm / "state").write_text(scheduler)
    view = look(run)
    assert view.state == state
    if state == GONE:
        assert "Slurm job 7 ended as TIMEOUT, and no word of the run's end; go on with" in view.message


def test_scheduler_that_cannot_be_asked_is_no_end(
    make_run: MakeRun, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _write(make_run("exit 0", "launcher={kind: slurm}"), "running", age_s=100)
    monkeypatch.setenv("PATH", "/nowhere")
    view = look(run)
    assert view.state == "running" and "scontrol is not installed here" in view.message


def test_answers_are_kept_for_a_moment(slurm: Path) -> None:
    record = Submission(launcher="slurm", jobs=("7",), submitted_utc="now")
    submission._answers.clear()
    assert submission.ask(record, patience_s=100).phase == "waiting"
    (slurm / "state").write_text(RUNNING)
    assert submission.ask(record, patience_s=100).phase == "waiting"
    assert submission.ask(record, patience_s=0) == JobView(phase="running", words="Slurm job 7 is RUNNING")


def test_launcher_without_a_queue_is_refused() -> None:
    record = Submission(launcher="local", jobs=("7",), submitted_utc="")
    with pytest.raises(LaunchError, match=r"the launcher local has no queue; was submission.json edited\?"):
        submission.ask(record, patience_s=0)


def test_run_folder_that_cannot_be_written_is_told(make_run: MakeRun, slurm: Path) -> None:
    run = make_run("exit 0", "launcher={kind: slurm}")
    run.status.mkdir()  # in the way of a file
    from llama_scale.launchers.slurm_queue import SlurmQueue
    from llama_scale.spec.load import load_spec

    with pytest.raises(LaunchError, match=r"cannot write into .*: Is a directory"):
        submission.enqueue(run, spec=load_spec(run.spec), queue=SlurmQueue())


def test_kubernetes_run_is_stopped_by_suspending_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: Path
) -> None:
    answer = json.dumps({"spec": {}, "status": {"replicatedJobsStatus": [{"active": 1}]}})
    tell = f"case $1 in get) echo '{answer}';; logs) echo 'step 1/4';; esac; cat >> \"$0.stdin\""
    write_program(slurm, "kubectl", f'echo "$@" >> "$0.argv"\n{tell}')
    spec = write_spec(tmp_path / "spec")
    launcher = "launcher={kind: kubernetes, flavour: jobset, image: x/y:1, claim: runs}"
    data = "data.blend=[{path: /only/in/the/cluster}]"
    words = ("--runs-dir", tmp_path / "runs", "--set", launcher, "--set", data, "--name", "My.Run")

    done = run_cli("launch", spec, *words)
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(tmp_path / "runs")
    assert json.loads(run_cli("status", run.path, "--json").stdout)["state"] == "starting"
    assert run_cli("logs", run.path).stdout == "step 1/4\n"
    assert run_cli("stop", run.path).returncode == 0

    calls = (slurm / "kubectl.argv").read_text().splitlines()
    name = run.name.lower().replace(".", "-")
    assert calls[-1].startswith(f"patch jobsets.jobset.x-k8s.io/{name} --type=merge")
    assert look(run).state == "stopped" and "told to save and leave" in look(run).message
    assert f"name: {name}-bundle" in (slurm / "kubectl.stdin").read_text()
