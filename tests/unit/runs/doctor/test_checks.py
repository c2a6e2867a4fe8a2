"""What follows from hosts' answers."""

from __future__ import annotations

from typing import Any

import pytest

from llama_scale.runs.doctor.checks import check_answers
from llama_scale.runs.doctor.records import Answer, Finding, Needs

FACTS: dict[str, Any] = {
    "host": "n1",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "deepspeed": None},
    "digest": "0.1.0+aaa",
    "nccl": "2.27",
    "gpus": [["H100", "570.1", "81559"]] * 8,
    "cores": 8,
    "memory": 64 << 30,
    "shm": 8 << 30,
    "disk": 100 << 30,
    "interface": ["eth0", "10.0.0.1", 1500],
    "first": "10.0.0.1",
    "port": None,
    "shared": {"read": "t", "written": "/runs/.doctor-t-n1", "same": True, "seen_here": True},
    "files": {"/data/a.bin": [10, "abc"]},
}
NEEDS = Needs(
    hosts=("n1", "n2", "n3"),
    devices=8,
    device="cuda",
    port=23456,
    files=("/data/a.bin",),
    disk_bytes=1e9,
    memory_bytes=1e9,
    world=24,
)


def examine(changes: dict[str, Any], *, needs: Needs = NEEDS, **answer: Any) -> list[Finding]:
    """Return what is not well when host n2 says something else."""
    answers = {host: Answer(host=host, facts=FACTS) for host in needs.hosts}
    answers["n2"] = Answer(host="n2", **({"facts": FACTS | changes} | answer))
    found = check_answers(needs, answers, own=Answer(host="here", facts=FACTS))
    return [finding for finding in found if finding.level != "ok"]


def test_hosts_that_are_well_are_told_so() -> None:
    answers = {host: Answer(host=host, facts=FACTS) for host in NEEDS.hosts}
    found = check_answers(NEEDS, answers, own=Answer(host="here", facts=FACTS))
    assert {finding.level for finding in found} == {"ok"}
    assert {"reachable", "package", "gpus", "network", "port", "clock", "shared", "data", "disk", "memory"} == {
        finding.check for finding in found
    }


@pytest.mark.parametrize(
    ("changes", "check", "message"),
    [
        ({"digest": None}, "package", "llama-scale is not installed there"),
        ({"digest": "0.1.0+bbb"}, "package", "llama-scale 0.1.0+bbb is installed there, and 0.1.0+aaa here"),
        ({"python": "3.12.1"}, "package", "Python is 3.12.1 there, and 3.11.7 here"),
        ({"packages": {"torch": None}}, "package", "torch is not installed there"),
        ({"packages": {"torch": "2.9.0"}}, "package", "torch is 2.9.0 there, and 2.13.0 here"),
        ({"gpus": "nvidia-smi is not installed"}, "gpus", "nvidia-smi is not installed"),
        ({"gpus": FACTS["gpus"][:7]}, "gpus", "7 GPUs are seen, and cluster.devices_per_node=8"),
        ({"gpus": [["H100", "535.0", "81559"]] * 8}, "driver", "NVIDIA driver is 535.0 there, and 570.1 on most hosts"),
        ({"nccl": "2.20"}, "nccl", "NCCL is 2.20 there, and 2.27 on most hosts"),
        ({"interface": "there is no way to n1: x"}, "network", "there is no way to n1"),
        ({"first": "cannot be resolved: x"}, "network", "n1, where the rendezvous is, cannot be resolved"),
        ({"first": "127.0.1.1"}, "network", "n1 means 127.0.1.1 there, which is that host itself"),
        ({"interface": ["eth0", "10.0.0.2", 9000]}, "network", "interface eth0 has MTU 9000, and 1500 is usual"),
        ({"shared": {"read": "No such file", "written": None, "same": False}}, "shared", "is another one there"),
        (
            {"shared": {"read": "t", "written": "Permission denied", "same": True, "seen_here": False}},
            "shared",
            "cannot be written there: Permission denied",
        ),
        ({"files": {"/data/a.bin": "No such file or directory"}}, "data", "/data/a.bin: No such file or directory"),
        ({"files": {"/data/a.bin": [9, "abc"]}}, "data", "9 bytes there, 10 here"),
        ({"files": {"/data/a.bin": [10, "abd"]}}, "data", "other content there"),
        ({"disk": 1 << 20}, "disk", "1.0 MiB of disk are free for runs, and their checkpoints take 0.9 GiB"),
        ({"memory": 1 << 20}, "memory", "1.0 MiB of memory are free, and its 8 processes need 0.9 GiB"),
        ({"shm": 64 << 20}, "shm", "/dev/shm has 64.0 MiB"),
    ],
)
def test_fault_of_one_host_is_told_once_with_a_remedy(changes: dict[str, Any], check: str, message: str) -> None:
    (finding,) = examine(changes)
    assert (finding.check, finding.host) == (check, "n2")
    assert message in finding.message and finding.remedy
    assert str(finding).startswith("n2: ")


def test_clock_is_judged_beyond_what_the_exchange_leaves_open() -> None:
    assert examine({}, skew_s=2.5, uncertainty_s=1.0) == []
    (finding,) = examine({}, skew_s=-90.0, uncertainty_s=0.01)
    assert finding.check == "clock" and "its clock is 90 s behind this one" in finding.message


def test_port_is_that_of_the_first_host() -> None:
    answers = {host: Answer(host=host, facts=FACTS) for host in NEEDS.hosts}
    answers["n1"] = Answer(host="n1", facts=FACTS | {"port": "Address already in use"})
    found = check_answers(NEEDS, answers, own=Answer(host="here", facts=FACTS))
    (finding,) = [finding for finding in found if finding.level == "failed"]
    assert finding.message == "port 23456 of the rendezvous cannot be used: Address already in use"


def test_silent_host_is_examined_no_further() -> None:
    (finding,) = examine({}, facts=None, fault="no answer", remedy="switch it on")
    assert str(finding) == "n2: no answer; switch it on"
