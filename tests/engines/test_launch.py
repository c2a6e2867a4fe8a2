"""Whole runs through the command line: real agent, real ranks, real kills."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llama_scale.checkpoint.manifest import newest_complete, verify_files
from llama_scale.runs.find import list_runs
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.progress import last_step
from llama_scale.runs.view import look
from tests.live_runs import end_run, processes_of, run_cli, start_cli, wait_for, write_spec

# More steps than any test waits for.
_ENDLESS = ("--set", "train.steps=1000000", "--set", "checkpoint.every_steps=1000000")
_TWO_RANKS = ("--set", "parallel.pipeline=1", "--set", "cluster.devices_per_node=2")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return write_spec(tmp_path / "spec")


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """A folder of runs, with a name that a shell would stumble over; nothing in it survives the test."""
    folder = tmp_path / 'it\'s a $(touch pwned) "runs" folder\nof \u00fcml\u00e4uts'
    yield folder
    for run in list_runs(folder):
        end_run(run)


def _only_run(runs: Path) -> RunFolder:
    found = wait_for(lambda: list_runs(runs))
    assert len(found) == 1
    return found[0]


def _wait_for_steps(run: RunFolder, count: int = 2) -> None:
    def reached() -> bool:
        assert look(run).state in ("not started", "starting", "running"), look(run).message
        line = last_step(run.metrics)
        return line is not None and line.step >= count

    wait_for(reached, timeout_s=240)


def _assert_saved_and_gone(run: RunFolder) -> None:
    newest = newest_complete(run.checkpoints)
    assert newest is not None
    verify_files(newest)
    line = last_step(run.metrics)
    assert line is not None and newest.name == f"step-{line.step:08d}"
    assert processes_of(run) == []


def _end(process: subprocess.Popen[str], *, timeout_s: float = 240) -> tuple[int, str]:
    _, err = process.communicate(timeout=timeout_s)
    return process.returncode, err


def test_launch_runs_the_dry_runs_bundle_and_resume_continues_on_another_layout(
    spec: Path, runs: Path, tmp_path: Path
) -> None:
    dry = tmp_path / "dry"
    assert run_cli("launch", spec, "--dry-run", "--out", dry).returncode == 0

    done = run_cli("launch", spec, "--runs-dir", runs)

    assert done.returncode == 0, done.stderr
    run = _only_run(runs)
    assert done.stdout == f"{run.path}\n"
    assert "step 4/4  loss " in done.stderr and "succeeded: all steps are done" in done.stderr
    assert {p.name: p.read_bytes() for p in run.bundle.iterdir()} == {p.name: p.read_bytes() for p in dry.iterdir()}
    assert run.spec.read_bytes() == (dry / "spec.yaml").read_bytes()
    assert [run.rank_log(rank).exists() for rank in range(5)] == [True] * 4 + [False]
    _assert_saved_and_gone(run)

    layout = ("--set", "parallel.tensor=1", "--set", "parallel.pipeline=1", "--set", "parallel.data=2")
    refused = run_cli("resume", run.path, *layout)
    assert refused.returncode == 5
    assert "all steps are done: the checkpoint is of step 4 and train.steps=4" in refused.stderr

    resumed = run_cli("resume", run.path, *layout, "--set", "train.steps=6")
    assert resumed.returncode == 0, resumed.stderr
    assert "reshard: from step-00000004, step 4 of 6: data 1 -> 2; tensor 2 -> 1; pipeline 2 -> 1" in resumed.stderr
    assert "step 5/6  loss " in resumed.stderr and "step 4/6" not in resumed.stderr
    assert (run.path / "bundle-000").is_dir()
    steps = [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    _assert_saved_and_gone(run)
    assert run_cli("report", run.path).stdout == f"{run.path / 'report.html'}\n"
    page = (run.path / "report.html").read_text()
    assert "1 restart in all" in page
    assert page.count(" resident</td>") == 1  # the one stage of the layout that it ended with
    assert not Path("pwned").exists()


def test_detached_run_is_followed_and_stopped_from_elsewhere(spec: Path, runs: Path) -> None:
    started = run_cli("launch", spec, "--runs-dir", runs, "--detach", *_ENDLESS, *_TWO_RANKS)
    assert started.returncode == 0, started.stderr
    run = _only_run(runs)
    logs = start_cli("logs", run.path, "-f")
    _wait_for_steps(run)

    status = json.loads(run_cli("status", "tiny", "--runs-dir", runs, "--json").stdout)
    assert (status["state"], status["name"], status["steps"]) == ("running", run.name, 1000000)
    again = run_cli("resume", run.path)
    assert again.returncode == 5
    assert f"{run.path} is running already" in again.stderr

    stopped = run_cli("stop", run.path)

    assert stopped.returncode == 0, stopped.stderr
    assert "stopped: " in stopped.stderr and "newest checkpoint: step-" in stopped.stderr
    _assert_saved_and_gone(run)
    out, _ = logs.communicate(timeout=120)
    assert logs.returncode == 0
    assert "step 1/1000000" in out and "stopped on request" in out
    assert json.loads(run_cli("runs", "--runs-dir", runs, "--json").stdout)[0]["state"] == "stopped"
    assert "is not running: stopped" in run_cli("stop", run.path).stderr


def test_ctrl_c_saves_a_checkpoint_and_leaves_no_process(spec: Path, runs: Path) -> None:
    process = start_cli("launch", spec, "--runs-dir", runs, *_ENDLESS, *_TWO_RANKS)
    run = _only_run(runs)
    _wait_for_steps(run)

    process.send_signal(signal.SIGINT)
    code, err = _end(process)

    assert code == 75, err
    assert "stopping: the run finishes its step and saves a checkpoint ..." in err
    assert f"go on with: llama-scale resume {shlex.quote(str(run.path))}" in err
    _assert_saved_and_gone(run)


def test_killed_rank_is_named_and_ends_the_run(spec: Path, runs: Path) -> None:
    process = start_cli("launch", spec, "--runs-dir", runs, *_ENDLESS)
    run = _only_run(runs)
    _wait_for_steps(run, 1)
    status = look(run).status
    assert status is not None and status.agent_pid is not None
    ranks = sorted(psutil.Process(status.agent_pid).children(), key=lambda child: child.pid)
    assert len(ranks) == 4

    ranks[2].kill()
    code, err = _end(process)

    assert code == 5
    assert "rank 2 failed first: killed by SIGKILL" in err
    assert str(run.rank_log(2)) in err
    status = look(run).status
    assert status is not None and status.first_failure is not None
    assert (status.state, status.first_failure.rank) == ("failed", 2)
    assert processes_of(run) == []


def test_killed_supervisor_takes_the_ranks_along_and_status_is_honest(spec: Path, runs: Path) -> None:
    process = start_cli("launch", spec, "--runs-dir", runs, *_ENDLESS, *_TWO_RANKS)
    run = _only_run(runs)
    _wait_for_steps(run, 1)
    status = look(run).status
    assert status is not None

    psutil.Process(status.supervisor_pid).kill()
    code, err = _end(process)

    assert code == 5
    assert "the supervisor died without ending the run" in err
    wait_for(lambda: processes_of(run) == [], timeout_s=120)
    _assert_saved_and_gone(run)
    shown = run_cli("status", run.path)
    assert "supervisor gone" in shown.stdout and "running" not in shown.stdout
    planned = json.loads(run_cli("resume", run.path, "--plan", "--json").stdout)
    assert planned["kind"] == "reuse" and planned["step"] >= 1


def test_killed_agent_is_named_and_its_ranks_are_not_left(spec: Path, runs: Path) -> None:
    process = start_cli("launch", spec, "--runs-dir", runs, *_ENDLESS, *_TWO_RANKS)
    run = _only_run(runs)
    _wait_for_steps(run, 1)
    status = look(run).status
    assert status is not None and status.agent_pid is not None

    psutil.Process(status.agent_pid).kill()
    code, err = _end(process)

    assert code == 5
    assert "agent killed by SIGKILL" in err
    assert processes_of(run) == []


def test_bundle_runs_by_hand_in_a_new_folder(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "by hand"
    assert run_cli("launch", spec, "--dry-run", "--out", out, *_TWO_RANKS).returncode == 0

    run = RunFolder(tmp_path / "a run")
    done = subprocess.run(["bash", out / "launch.sh", run.path], capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    assert newest_complete(run.checkpoints) == run.checkpoints / "step-00000004"
