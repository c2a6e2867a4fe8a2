"""Faults of 2 hosts x 2 ranks: each ends as specified in time, leaves nothing behind and changes no weight."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from llama_scale.runs.folder import RunFolder
from tests.cluster import host_faults as faults
from tests.cluster.hosts import Hosts
from tests.cluster.ssh_runs import (
    LEASE_S,
    agent_of,
    cli,
    launch,
    no_orphans,
    processes_of,
    ranks_of,
    status_of,
    verdict_of,
    wait_for_end,
    wait_for_restart,
    wait_for_step,
    weights_of,
    write_ssh_spec,
)
from tests.live_runs import wait_for


@pytest.fixture(scope="module")
def undisturbed(machines: Hosts, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[tuple[int, float]]]:
    """Weights and losses of the same run left alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = launch(machines, folder / "runs", write_ssh_spec(folder / "spec", machines))
    status = wait_for_end(run)
    assert status.state == "succeeded", status.message
    return weights_of(run)


def start(hosts: Hosts, folder: Path, *changes: str, step: int = 5) -> RunFolder:
    run = launch(hosts, folder / "runs", write_ssh_spec(folder / "spec", hosts, *changes))
    wait_for_step(run, step)
    return run


def finish(hosts: Hosts, run: RunFolder, expected: tuple[str, list[tuple[int, float]]]) -> None:
    """See the run end as if nothing had happened."""
    status = wait_for_end(run)
    assert status.state == "succeeded", status.message
    assert weights_of(run) == expected
    no_orphans(hosts, run)


def test_killed_rank_and_killed_agent_are_named(hosts: Hosts, tmp_path: Path, undisturbed: tuple[str, list]) -> None:
    run = start(hosts, tmp_path)
    os.kill(ranks_of(hosts.nodes[1], run)[1], signal.SIGKILL)
    wait_for_restart(run, timeout_s=60)
    verdict = verdict_of(run, 0)
    assert verdict["first_failure"]["rank"] == 3
    assert verdict["message"].startswith("rank 3 failed first: killed by SIGKILL")
    assert f"[rank 3 ran on {hosts.nodes[1].name}]" in verdict["message"]
    assert set(verdict["victims"]) == {0, 1, 2}

    wait_for_step(run, 12)
    os.kill(agent_of(hosts.nodes[0], run), signal.SIGKILL)
    wait_for_restart(run, 2, timeout_s=60)
    error = verdict_of(run, 1)["first_failure"]["error"]
    assert error == f"the agent of host {hosts.nodes[0].name} (ranks 0-1) was killed by SIGKILL"
    finish(hosts, run, undisturbed)


@pytest.mark.soak
def test_power_cut_of_a_host_that_comes_back(hosts: Hosts, tmp_path: Path, undisturbed: tuple[str, list]) -> None:
    run = start(hosts, tmp_path)
    faults.power_off(hosts.nodes[1])
    hosts.boot(hosts.nodes[1])
    wait_for_restart(run, timeout_s=3 * LEASE_S)
    failure = verdict_of(run, 0)["first_failure"]
    assert failure["kind"] == "node-lost"
    # Silence, or what a host says of connections that it does not know any more.
    assert failure["error"].startswith(f"host {hosts.nodes[1].name} (ranks 2-3): ")
    finish(hosts, run, undisturbed)


def test_network_that_drops_packets_for_a_while_ends_nothing(
    hosts: Hosts, tmp_path: Path, undisturbed: tuple[str, list]
) -> None:
    run = start(hosts, tmp_path, "launcher.lease_s=30")
    with faults.drop(hosts.nodes[1]):
        time.sleep(10)
    finish(hosts, run, undisturbed)
    assert status_of(run).attempt == 0


def test_hung_host_is_lost_and_ends_its_ranks_when_it_wakes(
    hosts: Hosts, tmp_path: Path, undisturbed: tuple[str, list]
) -> None:
    run = start(hosts, tmp_path, "restart.max=0")
    with faults.hang(hosts.nodes[1]):
        status = wait_for_end(run, timeout_s=3 * LEASE_S)
        assert status.state == "failed" and f"host {hosts.nodes[1].name} (ranks 2-3): no sign of life" in status.message
        assert processes_of(hosts.nodes[1], run) != []
    no_orphans(hosts, run)
    assert cli(hosts.head, "resume", run.path).returncode == 0
    finish(hosts, run, undisturbed)


@pytest.mark.soak
def test_cut_network_ends_the_ranks_behind_it(hosts: Hosts, tmp_path: Path, undisturbed: tuple[str, list]) -> None:
    run = start(hosts, tmp_path, "restart.max=0")
    with faults.cut(hosts.nodes[1]):
        wait_for(lambda: not processes_of(hosts.nodes[1], run), timeout_s=2 * LEASE_S)
        status = wait_for_end(run, timeout_s=2 * LEASE_S)
        assert status.state == "failed" and f"host {hosts.nodes[1].name} (ranks 2-3): no sign of life" in status.message
        no_orphans(hosts, run)
    assert cli(hosts.head, "resume", run.path).returncode == 0
    finish(hosts, run, undisturbed)


def test_dead_head_machine_lets_ranks_save_and_resume_goes_on(
    hosts: Hosts, tmp_path: Path, undisturbed: tuple[str, list]
) -> None:
    run = start(hosts, tmp_path)
    faults.power_off(hosts.head)
    wait_for(lambda: not any(processes_of(host, run) for host in hosts.nodes), timeout_s=LEASE_S + 5)
    hosts.boot(hosts.head)
    hosts.wait_for_ssh()
    assert "supervisor gone" in cli(hosts.head, "status", run.path).stdout
    assert cli(hosts.head, "resume", run.path, "--detach").returncode == 0
    finish(hosts, run, undisturbed)


def test_full_disk_loses_no_checkpoint(hosts: Hosts, undisturbed: tuple[str, list]) -> None:
    run = start(hosts, hosts.small_disk)
    filler = hosts.small_disk / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(b"\0" * 65536)
                file.flush()
        except OSError:
            pass
    status = wait_for_end(run)
    assert status.state == "failed"
    assert "free space or lower checkpoint.keep_last" in status.message
    no_orphans(hosts, run)
    filler.unlink()
    assert cli(hosts.head, "resume", run.path).returncode == 0
    finish(hosts, run, undisturbed)


def test_elastic_run_goes_on_with_the_hosts_that_are_left(
    hosts: Hosts, tmp_path: Path, undisturbed: tuple[str, list]
) -> None:
    run = start(hosts, tmp_path, "restart.min_nodes=1")
    faults.power_off(hosts.nodes[1])
    status = wait_for_restart(run, timeout_s=6 * LEASE_S)
    assert f"no answer from {hosts.nodes[1].name}: on 1 of 2 hosts from here on (data 2 -> 1)" in (
        run.supervisor_log.read_text(encoding="utf-8")
    ), status.message
    status = wait_for_end(run)
    assert status.state == "succeeded", status.message
    no_orphans(hosts, run)
    _, losses = weights_of(run)
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in undisturbed[1]], rel=1e-5)


def test_hung_rank_is_named_from_the_stacks_and_the_run_goes_on(
    hosts: Hosts, tmp_path: Path, undisturbed: tuple[str, list]
) -> None:
    run = start(hosts, tmp_path, "restart.hang_min_s=12", "restart.hang_factor=5")
    os.kill(ranks_of(hosts.nodes[1], run)[0], signal.SIGSTOP)
    wait_for_restart(run, timeout_s=90)
    status = status_of(run)
    assert status.first_failure is not None and status.first_failure.rank == 2, status.message
    assert "rank 2 did not even answer" in run.supervisor_log.read_text(encoding="utf-8")
    stacks = (run.attempt(0) / "stacks-node-00000.txt").read_text(encoding="utf-8")
    assert "== rank 0 " in stacks and "== rank 1 " in stacks and "loop.py" in stacks
    finish(hosts, run, undisturbed)
