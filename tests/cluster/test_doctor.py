"""Each fault of a host is named by doctor, with the host and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import llama_scale
from tests.cluster import host_faults as faults
from tests.cluster.hosts import Host, Hosts
from tests.cluster.ssh_runs import cli, write_ssh_spec

PORT = 23457
Fault = Callable[[Hosts, Host, Path], AbstractContextManager[None]]


def examine(hosts: Hosts, spec: list[str], runs: Path, *more: str) -> tuple[int, list[dict[str, Any]]]:
    done = cli(hosts.head, "doctor", *spec, "--runs-dir", runs, "--json", "--timeout", "10", *more)
    assert done.returncode in (0, 5), done.stderr
    report = json.loads(done.stdout)
    assert report["healthy"] == (done.returncode == 0)
    return done.returncode, report["findings"]


def another_version(hosts: Hosts, host: Host, folder: Path) -> AbstractContextManager[None]:
    other = folder / "other.py"
    other.write_text('__version__ = "0.0.9"\n', encoding="utf-8")
    return faults.replaced(host, Path(llama_scale.__file__), other)


def another_folder(hosts: Hosts, host: Host, folder: Path) -> AbstractContextManager[None]:
    (folder / "empty").mkdir()
    return faults.replaced(host, folder / "runs", folder / "empty")


def other_data(hosts: Hosts, host: Host, folder: Path) -> AbstractContextManager[None]:
    data = folder / "spec" / "tokens.bin"
    shutil.copy(data, folder / "copy")
    with (folder / "copy").open("r+b") as file:
        file.write(b"\xff\xff")
    return faults.replaced(host, data, folder / "copy")


FAULTS: dict[str, tuple[Fault, str, str, str]] = {
    "dropping": (lambda _, host, __: faults.drop(host), "reachable", "no answer: it is down, or packets", "cable"),
    "hung": (lambda _, host, __: faults.hang(host), "reachable", "does not speak: the host hangs", "restart it"),
    "version": (another_version, "package", "llama-scale 0.0.9+", "install the same environment"),
    "read-only": (
        lambda _, host, folder: faults.read_only(host, folder / "runs"),
        "shared",
        "cannot be written there: Read-only file system",
        "mend its mount",
    ),
    "not-shared": (another_folder, "shared", "the runs folder is another one there", "mount it there"),
    "data": (other_data, "data", "tokens.bin: other content there", "copy the data"),
    "port": (
        lambda _, host, __: faults.port_taken(host, PORT),
        "port",
        f"port {PORT} of the rendezvous cannot be used: Address already in use",
        "set launcher.master_port",
    ),
    "clock": (lambda hosts, host, _: faults.clock_skew(hosts, host, 90), "clock", "s ahead of this one", "chronyc"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named_with_host_and_remedy(hosts: Hosts, tmp_path: Path, name: str) -> None:
    fault, check, message, remedy = FAULTS[name]
    spec = write_ssh_spec(tmp_path / "spec", hosts, f"launcher.master_port={PORT}")
    (tmp_path / "runs").mkdir()
    host = hosts.nodes[0]
    with fault(hosts, host, tmp_path):
        status, findings = examine(hosts, spec, tmp_path / "runs", "--quick")
    failed = [finding for finding in findings if finding["level"] == "failed"]
    assert status == 5
    assert [(finding["check"], finding["host"]) for finding in failed] == [(check, host.name)]
    assert message in failed[0]["message"] and remedy in failed[0]["remedy"]


def test_host_that_is_off_keeps_a_launch_from_starting(hosts: Hosts, tmp_path: Path) -> None:
    spec = write_ssh_spec(tmp_path / "spec", hosts)
    faults.power_off(hosts.nodes[1])
    done = cli(hosts.head, "launch", *spec, "--runs-dir", tmp_path / "runs")
    assert done.returncode == 5
    assert f"{hosts.nodes[1].name}: no answer: it is down, or packets to it are dropped" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def test_healthy_hosts_are_timed(hosts: Hosts, tmp_path: Path) -> None:
    spec = write_ssh_spec(tmp_path / "spec", hosts)
    status, findings = examine(hosts, spec, tmp_path / "runs")
    assert status == 0
    by_check = {finding["check"]: finding for finding in findings}
    assert "rendezvous of 2 processes in" in by_check["rendezvous"]["message"]
    assert by_check["link"]["host"] == " - ".join(host.name for host in hosts.nodes)
    assert "GB/s" in by_check["link"]["message"]
    assert list((tmp_path / "runs").iterdir()) == []
