"""Runs over ssh on test hosts: 2 hosts x 2 ranks, launched from the head machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from llama_scale.checkpoint.manifest import load_manifest, newest_complete, verify_files
from llama_scale.runs.folder import RUN_VARIABLE, RunFolder
from llama_scale.runs.progress import last_step
from llama_scale.runs.records import ENDED, Status, load_record
from tests.cluster.hosts import Host, Hosts
from tests.live_runs import SPEC, environment, wait_for, write_spec

STEPS = 60
LEASE_S = 9
"""Short, so that a lost host is found soon; ranks are asked to save after 6 s."""


def write_ssh_spec(folder: Path, hosts: Hosts, *changes: str, steps: int = STEPS) -> list[str]:
    """Write the tiny spec; return the words that make it one for the hosts: tensor 2 inside a host, data 2 across."""
    write_spec(folder, text=SPEC)
    names = ", ".join(host.name for host in hosts.nodes)
    overrides = [
        f"launcher={{kind: ssh, hosts: [{names}], threads_per_process: 1, grace_s: 20, lease_s: {LEASE_S}}}",
        f"cluster.nodes={len(hosts.nodes)}",
        *("cluster.devices_per_node=2", "parallel.pipeline=1", f"parallel.data={len(hosts.nodes)}"),
        *(f"train.steps={steps}", "train.timeout_s=120", "checkpoint.every_steps=2"),
        *("restart.max=3", "data.seq_length=32"),
        *changes,
    ]
    return [str(folder / "spec.yaml"), *(word for change in overrides for word in ("--set", change))]


def cli(host: Host, *words: str | Path, timeout_s: float = 240, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``llama-scale`` on a host to its end."""
    command = [sys.executable, "-m", "llama_scale", *words]
    return host.run(command, timeout_s=timeout_s, env=environment(**variables))


def launch(hosts: Hosts, runs: Path, spec: list[str], *more: str, **variables: str) -> RunFolder:
    """Launch from the head machine without waiting; return the run's folder."""
    done = cli(hosts.head, "launch", *spec, "--runs-dir", runs, "--detach", *more, **variables)
    assert done.returncode == 0, done.stderr
    return RunFolder(Path(done.stdout.removesuffix("\n")))


def status_of(run: RunFolder) -> Status:
    """Return what status.json says; the lock is on another host's side and is not asked."""
    status = load_record(run.status, Status)
    assert status is not None
    return status


def wait_for_step(run: RunFolder, step: int) -> None:
    """Wait until the run has done a step."""

    def reached() -> bool:
        status = status_of(run)
        assert status.state not in ENDED, status.message
        line = last_step(run.metrics)
        return line is not None and line.step >= step

    wait_for(reached, timeout_s=90)


def wait_for_end(run: RunFolder, *, timeout_s: float = 120) -> Status:
    """Wait until the run has ended for good; return its last status."""
    wait_for(lambda: status_of(run).state in ENDED, timeout_s=timeout_s)
    return status_of(run)


def wait_for_restart(run: RunFolder, attempt: int = 1, *, timeout_s: float = 90) -> Status:
    """Wait until an attempt has begun."""
    wait_for(lambda: status_of(run).attempt >= attempt or status_of(run).state in ENDED, timeout_s=timeout_s)
    assert status_of(run).attempt >= attempt, status_of(run).message
    return status_of(run)


def processes_of(host: Host, run: RunFolder) -> list[int]:
    """Return the processes of a run that live on a host, as the machine numbers them; its supervisor not."""
    wanted = f"{RUN_VARIABLE}={run.path}".encode()
    found = []
    for pid in host.processes():
        try:
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
        except OSError:
            continue
    return found


def _ranks_and_parents(host: Host, run: RunFolder) -> dict[int, int]:
    """Return rank -> agent of the processes that an agent of this host has forked."""
    agents = [pid for pid in processes_of(host, run) if b"llama_scale.train.agent" in _words(pid)]
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in agents}
    return {pid: parent for pid, parent in parents.items() if parent in agents}


def ranks_of(host: Host, run: RunFolder) -> list[int]:
    """Return the processes of a host's ranks."""
    return sorted(_ranks_and_parents(host, run))


def agent_of(host: Host, run: RunFolder) -> int:
    """Return the process of a host's agent; the store that it started looks like it, but has no ranks."""
    (agent,) = set(_ranks_and_parents(host, run).values())
    return agent


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def no_orphans(hosts: Hosts, run: RunFolder, *, patience_s: float = 10) -> None:
    """Wait until nothing of a run lives on any host; a moment passes between the status and the last exit."""
    wait_for(lambda: not any(processes_of(host, run) for host in hosts.all if host.pid), timeout_s=patience_s)


def verdict_of(run: RunFolder, attempt: int) -> dict[str, Any]:
    """Return how an attempt ended."""
    found: dict[str, Any] = json.loads(run.verdict(attempt).read_text(encoding="utf-8"))
    return found


def weights_of(run: RunFolder, *, steps: int = STEPS) -> tuple[str, list[tuple[int, float]]]:
    """Return the digest of a finished run's weights, and each step's loss."""
    newest = newest_complete(run.checkpoints)
    assert newest is not None and newest.name == f"step-{steps:08d}"
    verify_files(newest)
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    return load_manifest(newest).parameter_digest, [(line["step"], line["loss"]) for line in lines]
