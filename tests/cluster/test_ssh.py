"""Launching over ssh on real hosts."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cluster.hosts import Hosts
from tests.cluster.ssh_runs import (
    cli,
    launch,
    no_orphans,
    processes_of,
    ranks_of,
    wait_for_end,
    wait_for_step,
    weights_of,
    write_ssh_spec,
)

HOSTILE = 'it\'s "$(touch pwned)" `touch pwned` $HOME -x ü\n;touch pwned #'
SECRET = "not-for-any-file-1f2e3d"


def environ_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


def test_hostile_names_secrets_and_commands_from_another_terminal(hosts: Hosts, tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "")
    spec = write_ssh_spec(
        folder,
        hosts,
        f"launcher.env={json.dumps({'HOSTILE': HOSTILE})}",
        "launcher.forward=[A_TOKEN]",
        steps=400,
    )
    run = launch(hosts, folder / "-runs", spec, A_TOKEN=SECRET, NCCL_TEST=HOSTILE, NOT_NAMED="x")
    wait_for_step(run, 3)

    for host in hosts.nodes:
        for pid in ranks_of(host, run):
            variables = environ_of(pid)
            assert variables["HOSTILE"] == variables["NCCL_TEST"] == HOSTILE
            assert variables["A_TOKEN"] == SECRET and "NOT_NAMED" not in variables
            assert variables["OMP_NUM_THREADS"] == "1"
    assert len(ranks_of(hosts.nodes[0], run)) == 2
    for host in hosts.all:
        for pid in processes_of(host, run):
            assert SECRET not in Path(f"/proc/{pid}/cmdline").read_text()
    for file in run.path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()
    assert not list(tmp_path.rglob("pwned"))

    status = json.loads(cli(hosts.head, "status", run.path, "--json").stdout)
    assert status["state"] == "running" and status["supervisor_host"] == hosts.head.name
    assert "tiny" in cli(hosts.head, "runs", "--runs-dir", run.path.parent).stdout
    assert "step 3/400" in cli(hosts.head, "logs", run.path).stdout
    assert cli(hosts.head, "logs", run.path, "--rank", "3").returncode == 0
    stopped = cli(hosts.head, "stop", run.path)
    assert stopped.returncode == 0 and "stopped: stopped on request; the state is saved" in stopped.stderr
    no_orphans(hosts, run)
    step = json.loads(cli(hosts.head, "status", run.path, "--json").stdout)["step"]
    assert step < 400
    again = cli(hosts.head, "resume", run.path, "--set", f"train.steps={step + 4}")
    assert again.returncode == 0, again.stderr
    assert wait_for_end(run).state == "succeeded"
    weights_of(run, steps=step + 4)
    no_orphans(hosts, run)
    assert not list(tmp_path.rglob("pwned"))
