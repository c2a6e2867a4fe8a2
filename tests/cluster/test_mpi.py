"""Runs through real OpenMPI: one agent a host on two hosts, started by mpirun over ssh."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from llama_scale.runs.find import list_runs
from llama_scale.runs.folder import RunFolder
from tests.cluster.hosts import Hosts, install_packages
from tests.cluster.ssh_runs import (
    agent_of,
    cli,
    no_orphans,
    ranks_of,
    verdict_of,
    wait_for_end,
    wait_for_restart,
    wait_for_step,
)
from tests.live_runs import SPEC, write_spec

PACKAGES = {"mpirun": "openmpi-bin"}


@pytest.fixture
def mpi_hosts(hosts: Hosts) -> Hosts:
    install_packages(PACKAGES)
    return hosts


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / 'it\'s a $(touch pwned) "runs"\n-x \u00fc folder'


def write(folder: Path, hosts: Hosts, *changes: str) -> list[str]:
    """Write the tiny spec; return the words that make it one for the hosts."""
    write_spec(folder, text=SPEC)
    (folder / "hostfile").write_text("".join(f"{host.name} slots=2\n" for host in hosts.nodes))
    overrides = [
        "launcher={kind: mpi, hostfile: hostfile, threads_per_process: 1, grace_s: 20}",
        *("cluster.nodes=2", "cluster.devices_per_node=2", "train.timeout_s=60"),
        *changes,
    ]
    return [str(folder / "spec.yaml"), *(word for change in overrides for word in ("--set", change))]


def launch(hosts: Hosts, runs: Path, words: list[str], **variables: str) -> RunFolder:
    done = cli(hosts.head, "launch", *words, "--runs-dir", runs, "--detach", **variables)
    assert done.returncode == 0, done.stderr
    (run,) = list_runs(runs)
    return run


def steps_of(run: RunFolder) -> list[int]:
    return [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]


def test_run_on_two_hosts_stops_and_resumes(mpi_hosts: Hosts, tmp_path: Path, runs: Path) -> None:
    hostile = 'it\'s "$(touch pwned)" `x` \\ $HOME\n-y \u00fc;a'
    words = write(tmp_path / "spec", mpi_hosts, "train.steps=1000000", "checkpoint.every_steps=1000000")
    words += ["--set", f"launcher.env={json.dumps({'HOSTILE': hostile})}", "--set", "launcher.forward=[SECRET]"]
    run = launch(mpi_hosts, runs, words, NCCL_HOSTILE=hostile, SECRET="s3cret", OTHER="x")
    wait_for_step(run, 2)

    for node in mpi_hosts.nodes:
        pairs = Path(f"/proc/{agent_of(node, run)}/environ").read_bytes().decode().split("\0")
        variables = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        assert variables["HOSTILE"] == hostile and variables["NCCL_HOSTILE"] == hostile
        assert variables["SECRET"] == "s3cret" and "OTHER" not in variables
    assert "s3cret" not in "".join(path.read_text() for path in run.path.rglob("*") if _is_text(path))
    stopped = cli(mpi_hosts.head, "stop", run.path)

    assert stopped.returncode == 0 and "the state is saved" in stopped.stderr, stopped.stderr
    step = steps_of(run)[-1]
    resumed = cli(mpi_hosts.head, "resume", run.path, "--set", f"train.steps={step + 2}")
    assert resumed.returncode == 0, resumed.stderr
    assert steps_of(run) == list(range(1, step + 3))
    assert (run.path / "done").is_file() and len(list_runs(runs)) == 1
    assert not list(runs.rglob("pwned")) and not Path("pwned").exists()


def _is_text(path: Path) -> bool:
    return path.is_file() and path.suffix in (".sh", ".yaml", ".json", ".log", "") and path.name != "env"


def test_killed_rank_ends_all_hosts_and_the_run_starts_again(mpi_hosts: Hosts, tmp_path: Path, runs: Path) -> None:
    words = write(tmp_path / "spec", mpi_hosts, "train.steps=60", "checkpoint.every_steps=2", "restart={max: 1}")
    run = launch(mpi_hosts, runs, words)
    wait_for_step(run, 3)

    os.kill(ranks_of(mpi_hosts.nodes[1], run)[-1], signal.SIGKILL)
    wait_for_restart(run)
    verdict = verdict_of(run, 0)
    ended = wait_for_end(run)

    assert (ended.state, ended.restarts) == ("succeeded", 1), ended.message
    assert verdict["first_failure"]["rank"] == 3 and "killed by SIGKILL" in verdict["message"]
    assert verdict["victims"] == [0, 1, 2]
    assert steps_of(run) == list(range(1, 61))


def test_killed_mpirun_leaves_no_process_on_any_host(mpi_hosts: Hosts, tmp_path: Path, runs: Path) -> None:
    words = write(tmp_path / "spec", mpi_hosts, "train.steps=1000000", "checkpoint.every_steps=1000000")
    run = launch(mpi_hosts, runs, words)
    wait_for_step(run, 1)

    for pid in mpi_hosts.head.processes():
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"mpirun\0"):
            os.kill(pid, signal.SIGKILL)
    ended = wait_for_end(run)

    assert ended.state == "failed" and "mpirun was killed by SIGKILL" in ended.message
    no_orphans(mpi_hosts, run, patience_s=60)
