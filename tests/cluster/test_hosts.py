"""The test hosts themselves: each fault does what its name says."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.cluster import host_faults as faults
from tests.cluster.hosts import Hosts


def ping(hosts: Hosts, name: str) -> bool:
    words = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=2", name, "hostname"]
    try:
        return hosts.head.run(words, timeout_s=6).stdout.strip() == name
    except subprocess.TimeoutExpired:
        return False


def test_faults_come_and_go(hosts: Hosts, tmp_path: Path) -> None:
    one, two = hosts.nodes
    for fault in (faults.cut, faults.drop, faults.hang):
        with fault(one):
            assert not ping(hosts, one.name)
            assert ping(hosts, two.name)
        deadline = time.monotonic() + 20
        while not ping(hosts, one.name):
            assert time.monotonic() < deadline
    with faults.clock_skew(hosts, one, 90):
        theirs = float(hosts.head.run(["ssh", one.name, "date", "+%s"]).stdout)
        assert 80 < theirs - time.time() < 100
    assert abs(float(hosts.head.run(["ssh", one.name, "date", "+%s"]).stdout) - time.time()) < 10
    with faults.read_only(one, tmp_path):
        assert hosts.head.run(["ssh", one.name, "touch", tmp_path / "x"]).returncode != 0
        assert hosts.head.run(["ssh", two.name, "touch", tmp_path / "y"]).returncode == 0
    with faults.port_taken(one, 23456):
        assert f":{23456:04X} 00000000:0000 0A" in one.run(["cat", "/proc/net/tcp"]).stdout


def test_power_cut_ends_everything_inside(hosts: Hosts) -> None:
    one = hosts.nodes[0]
    process = one.start(["sleep", "1000"])
    faults.power_off(one)
    assert process.wait(timeout=10) != 0
    assert not ping(hosts, one.name)
    hosts.boot(one)
    hosts.wait_for_ssh()
    assert "sleep 1000" not in one.run(["ps", "-e", "-o", "args"]).stdout
