"""Runs of every engine that are killed and stopped at random moments end as the same run left alone, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from llama_scale.checkpoint.manifest import load_manifest, newest_complete, verify_files
from llama_scale.runs.find import list_runs
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.progress import last_step
from llama_scale.runs.records import Status
from llama_scale.runs.view import look
from tests.live_runs import end_run, processes_of, run_cli, wait_for, write_spec

STEPS = 80
COMMON = (
    *("--set", f"train.steps={STEPS}", "--set", "checkpoint.every_steps=2", "--set", "checkpoint.keep_last=2"),
    *("--set", "restart.max=100", "--set", "restart.only_if_progress=true", "--set", "data.seq_length=32"),
)
ZERO = ("engine.kind=deepspeed", "parallel.tensor=1", "parallel.pipeline=1", "parallel.data=2")
LAYOUTS = {
    "megatron": ("parallel.pipeline=1", "cluster.devices_per_node=2"),
    "ddp": ("engine.kind=ddp", *ZERO[1:], "cluster.devices_per_node=2"),
    "zero2": (*ZERO, "engine.zero=2", "cluster.devices_per_node=2"),
}
SOAK_LAYOUTS = {
    "zero3": (*ZERO, "engine.zero=3", "engine.persistence_elements=1000", "cluster.devices_per_node=2"),
    "deepspeed-pipeline": ("engine.kind=deepspeed", "parallel.tensor=1", "cluster.devices_per_node=2"),
    "megatron-tp2-pp2": ("engine.distributed_optimizer=true",),
}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    return write_spec(tmp_path / "spec")


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "runs"
    for run in list_runs(tmp_path / "runs"):
        end_run(run)


def options(name: str) -> list[str]:
    return [*COMMON, *(word for change in (LAYOUTS | SOAK_LAYOUTS)[name] for word in ("--set", change))]


def launch(spec: Path, runs: Path, name: str, *, detach: bool) -> RunFolder:
    before = {run.path for run in list_runs(runs)}
    done = run_cli("launch", spec, "--runs-dir", runs, *options(name), *(("--detach",) if detach else ()))
    assert done.returncode == 0, done.stderr
    (run,) = [run for run in list_runs(runs) if run.path not in before]
    return run


def state_of(run: RunFolder) -> dict[str, Any]:
    """Everything a finished run holds: digests of weights and optimizer state, and each step's loss."""
    newest = newest_complete(run.checkpoints)
    assert newest is not None and newest.name == f"step-{STEPS:08d}"
    verify_files(newest)
    manifest = load_manifest(newest)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {
        "tensors": {
            (group, name): entry.digest
            for group, table in manifest.tensors.items()
            for name, entry in table.items()
            if group != "rng"
        },
        "losses": [(line["step"], line["loss"], line["grad_norm"]) for line in lines],
    }


def status_of(run: RunFolder) -> Status:
    status = look(run).status
    assert status is not None
    return status


def ranks_of(run: RunFolder, attempt: int) -> list[int]:
    """Process ids of an attempt's two ranks or more, in order of rank; none while there are no ranks."""
    status = status_of(run)
    if status.attempt != attempt or status.agent_pid is None:
        return []
    try:
        ranks = sorted(child.pid for child in psutil.Process(status.agent_pid).children())
    except psutil.NoSuchProcess:
        return []
    return ranks if len(ranks) >= 2 else []


def verdict_of(run: RunFolder, attempt: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / "attempts" / f"{attempt:03d}" / "verdict.json").read_text())
    return found


def kill_one(run: RunFolder, dice: random.Random, *, attempt: int, last: int) -> int:
    """Kill a random rank of an attempt at a random moment up to about step ``last``; return its number."""
    ranks = wait_for(lambda: ranks_of(run, attempt), timeout_s=120)
    rank = dice.randrange(len(ranks))
    line = last_step(run.metrics)
    begin = line.step if line else 0
    target = dice.randint(begin, max(begin, last))  # ``begin`` itself: before this attempt's first step

    def reached() -> bool:
        line = last_step(run.metrics)
        return (line.step if line else 0) >= target

    wait_for(reached, timeout_s=120)
    time.sleep(dice.random() * 0.2)
    psutil.Process(ranks[rank]).kill()
    return rank


def go_on(run: RunFolder, attempt: int) -> int:
    """Wait for the next attempt, or resume where the spec allows no restart; return the attempt's number."""
    wait_for(lambda: (s := status_of(run)).attempt > attempt or s.state == "failed", timeout_s=120)
    status = status_of(run)
    if status.attempt > attempt:
        return status.attempt
    assert "no checkpoint was completed since the restart" in run.supervisor_log.read_text()
    assert run_cli("resume", run.path, "--detach").returncode == 0
    return int(wait_for(lambda: (s := status_of(run)).attempt > attempt and s.attempt, timeout_s=60))


def check_kills(spec: Path, runs: Path, name: str, *, kills: int, seed: int) -> None:
    dice = random.Random(f"{name}-{seed}")
    expected = state_of(launch(spec, runs, name, detach=False))
    run = launch(spec, runs, name, detach=True)
    attempt = 0
    for count in range(1, kills + 1):
        # Room is left for the kills to come.
        rank = kill_one(run, dice, attempt=attempt, last=(STEPS - 20) * count // kills)
        killed, attempt = attempt, go_on(run, attempt)
        failure = verdict_of(run, killed)["first_failure"]
        assert failure["rank"] == rank
        assert failure["error"].startswith("killed by SIGKILL")
    wait_for(lambda: status_of(run).state not in ("starting", "running"), timeout_s=240)

    assert status_of(run).state == "succeeded", status_of(run).message
    assert status_of(run).attempt == kills
    assert state_of(run) == expected
    assert processes_of(run) == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_three_kills_change_nothing(spec: Path, runs: Path, name: str) -> None:
    check_kills(spec, runs, name, kills=3, seed=0)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("name", [*LAYOUTS, *SOAK_LAYOUTS])
def test_twenty_kills_change_nothing(spec: Path, runs: Path, name: str, seed: int) -> None:
    check_kills(spec, runs, name, kills=5, seed=seed)


def check_stops(spec: Path, runs: Path, name: str) -> None:
    """Stop by SIGTERM to the supervisor, then by SIGUSR1 to the agent as a scheduler does, and go on each time."""
    run = launch(spec, runs, name, detach=True)
    for count, (number, state) in enumerate(((signal.SIGTERM, "stopped"), (signal.SIGUSR1, "preempted")), start=1):
        reached = count * STEPS // 4
        wait_for(lambda reached=reached: (line := last_step(run.metrics)) and line.step >= reached, timeout_s=120)
        status = status_of(run)
        pid = status.supervisor_pid if number is signal.SIGTERM else status.agent_pid
        assert pid is not None
        psutil.Process(pid).send_signal(number)
        wait_for(lambda: status_of(run).exit_code is not None, timeout_s=90)
        status = status_of(run)
        assert (status.state, status.exit_code) == (state, 75)
        line = last_step(run.metrics)
        assert line is not None and status.checkpoint == f"step-{line.step:08d}"
        assert processes_of(run) == []
        assert run_cli("resume", run.path, "--detach").returncode == 0
        wait_for(lambda count=count: status_of(run).attempt == count, timeout_s=60)
    wait_for(lambda: status_of(run).state not in ("starting", "running"), timeout_s=120)
    assert status_of(run).state == "succeeded"
    assert state_of(run) == state_of(launch(spec, runs, name, detach=False))


@pytest.mark.parametrize("name", ["ddp", "zero2", *(pytest.param(n, marks=pytest.mark.soak) for n in SOAK_LAYOUTS)])
def test_stop_signals_save_and_resume_changes_nothing(spec: Path, runs: Path, name: str) -> None:
    check_stops(spec, runs, name)
