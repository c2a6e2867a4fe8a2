"""Whole runs through the real ``deepspeed`` command on this machine: stop, kills, resume, also on another launcher."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llama_scale.checkpoint.manifest import newest_complete, verify_files
from llama_scale.launchers.processes import kill_all
from llama_scale.runs.find import list_runs
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.progress import last_step
from llama_scale.runs.view import look
from tests.live_runs import end_run, processes_of, run_cli, start_cli, wait_for, write_spec

_LAUNCHER = ("--set", "launcher={kind: deepspeed, threads_per_process: 1, grace_s: 60}")
_ENDLESS = ("--set", "train.steps=1000000", "--set", "checkpoint.every_steps=1000000")
_TWO = ("--set", "parallel.pipeline=1", "--set", "cluster.devices_per_node=2")
_ZERO = (
    *("--set", "engine={kind: deepspeed, zero: 1}", "--set", "parallel.tensor=1", "--set", "parallel.data=2"),
    *("--set", "parallel.pipeline=1", "--set", "cluster.devices_per_node=2"),
)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return write_spec(tmp_path / "spec")


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """A folder of runs with a name that a shell would stumble over; nothing in it survives the test."""
    folder = tmp_path / 'it\'s a $(touch pwned) "runs" folder'
    yield folder
    for run in list_runs(folder):
        end_run(run)


def _only_run(runs: Path) -> RunFolder:
    (run,) = wait_for(lambda: list_runs(runs))
    assert isinstance(run, RunFolder)
    return run


def _wait_for_steps(run: RunFolder, count: int = 1) -> None:
    def reached() -> bool:
        assert look(run).state in ("not started", "starting", "running"), look(run).message
        line = last_step(run.metrics)
        return line is not None and line.step >= count

    wait_for(reached, timeout_s=400)


def _worker(run: RunFolder, rank: int) -> psutil.Process:
    """Return the process of a rank proper (not the one that watches over it)."""
    for pid in processes_of(run):
        process = psutil.Process(pid)
        if "llama_scale.train.worker" in process.cmdline() and process.environ()["RANK"] == str(rank):
            return process
    raise AssertionError(f"no rank {rank}")


def _assert_saved_and_gone(run: RunFolder) -> None:
    newest = newest_complete(run.checkpoints)
    assert newest is not None
    verify_files(newest)
    assert processes_of(run) == []


def test_run_stops_with_a_checkpoint_and_goes_on_under_the_local_launcher(spec: Path, runs: Path) -> None:
    started = run_cli("launch", spec, "--runs-dir", runs, "--detach", *_LAUNCHER, *_ENDLESS, *_ZERO)
    assert started.returncode == 0, started.stderr
    run = _only_run(runs)
    assert started.stdout == f"{run.path}\n"
    _wait_for_steps(run, 2)
    assert json.loads(run_cli("status", run.path, "--json").stdout)["state"] == "running"

    stopped = run_cli("stop", run.path, timeout_s=400)

    assert stopped.returncode == 0, stopped.stderr
    assert "stopped: stopped on request; the state is saved" in stopped.stderr
    _assert_saved_and_gone(run)
    line = last_step(run.metrics)
    assert line is not None
    verdict = json.loads(run.verdict(0).read_text())
    assert (verdict["state"], verdict["exit_code"]) == ("preempted", 75)

    local = ("--set", "launcher={kind: local, threads_per_process: 1}", "--set", f"train.steps={line.step + 1}")
    resumed = run_cli("resume", run.path, *local, timeout_s=400)
    assert resumed.returncode == 0, resumed.stderr
    steps = [json.loads(row)["step"] for row in run.metrics.read_text().splitlines()]
    assert steps == list(range(1, line.step + 2))
    assert not Path("pwned").exists() and not list(runs.rglob("pwned"))


def test_killed_rank_is_named_and_the_run_goes_on_by_itself(spec: Path, runs: Path) -> None:
    restart = ("--set", "restart={max: 1}", "--set", "train.steps=40", "--set", "checkpoint.every_steps=2")
    process = start_cli("launch", spec, "--runs-dir", runs, *_LAUNCHER, *_TWO, *restart)
    run = _only_run(runs)
    _wait_for_steps(run, 3)

    _worker(run, 1).kill()
    _, err = process.communicate(timeout=500)

    assert process.returncode == 0, err
    verdict = json.loads(run.verdict(0).read_text())
    assert verdict["first_failure"]["rank"] == 1 and verdict["victims"] == [0]
    assert "rank 1: killed by SIGKILL" in err and "; restart 1 from step-" in err
    line = last_step(run.metrics)
    assert line is not None and line.step == 40
    _assert_saved_and_gone(run)


def test_killed_processes_above_the_ranks_end_the_run_and_leave_nothing(spec: Path, runs: Path) -> None:
    process = start_cli("launch", spec, "--runs-dir", runs, *_LAUNCHER, *_ENDLESS, *_TWO)
    run = _only_run(runs)
    _wait_for_steps(run)
    launch = next(pid for pid in processes_of(run) if "deepspeed.launcher.launch" in psutil.Process(pid).cmdline())

    os.kill(launch, signal.SIGKILL)  # DeepSpeed's own runner then ends with 0
    _, err = process.communicate(timeout=300)

    assert process.returncode == 5
    assert "the deepspeed command ended with status 0 while rank 0, 1 still ran" in err
    assert processes_of(run) == []


def test_ranks_end_when_nobody_above_them_is_left(spec: Path, runs: Path) -> None:
    process = start_cli("launch", spec, "--runs-dir", runs, *_LAUNCHER, *_ENDLESS, *_TWO)
    run = _only_run(runs)
    _wait_for_steps(run)
    status = look(run).status
    assert status is not None and status.agent_pid is not None

    kill_all([status.supervisor_pid, status.agent_pid])
    process.communicate(timeout=300)

    assert process.returncode == 5
    wait_for(lambda: processes_of(run) == [], timeout_s=120)
