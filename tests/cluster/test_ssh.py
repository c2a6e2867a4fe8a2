"""Launching over ssh on real hosts."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.hosts import Hosts
from tests.cluster.ssh_runs import launch, no_orphans, wait_for_end, weights_of, write_ssh_spec


def test_two_hosts_train(hosts: Hosts, tmp_path: Path) -> None:
    run = launch(hosts, tmp_path / "runs", write_ssh_spec(tmp_path / "spec", hosts))
    status = wait_for_end(run)
    assert status.state == "succeeded", status.message
    weights_of(run)
    no_orphans(hosts, run)
