"""Asking hosts, with a stand-in for the ssh client: it runs the command here, or fails as ssh does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llama_scale.errors import LaunchError
from llama_scale.runs.doctor.ask import ask_here, ask_hosts
from llama_scale.runs.doctor.examine import examine, failures
from llama_scale.runs.doctor.links import rounds
from llama_scale.runs.doctor.records import Needs, Question

_SSH = """#!/bin/bash
command=${@: -1}; set -- "${@:1:$#-1}"; host=${@: -1}
case $host in
  good) echo 'Welcome!'; exec bash -c "$command" ;;
  apart) rm -f "${0%/bin/ssh}"/runs/.bases/.doctor-*; exec bash -c "$command" ;;
  mute) exec sleep 300 ;;
  unknown) echo 'ssh: Could not resolve hostname unknown: Name or service not known' >&2; exit 255 ;;
  locked) echo 'root@locked: Permission denied (publickey).' >&2; exit 255 ;;
  strange) echo 'Host key verification failed.' >&2; exit 255 ;;
  closed) echo 'ssh: connect to host closed port 22: Connection refused' >&2; exit 255 ;;
  down) echo 'ssh: connect to host down port 22: No route to host' >&2; exit 255 ;;
  hung) echo 'Connection timed out during banner exchange' >&2; exit 255 ;;
  odd) echo 'kex_exchange_identification: read: Connection reset' >&2; exit 255 ;;
  bare) echo 'bash: line 1: /opt/python: No such file or directory' >&2; exit 127 ;;
  broken) echo 'SyntaxError: x' >&2; exit 1 ;;
esac
"""


@pytest.fixture(autouse=True)
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(_SSH, encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("host", "fault", "remedy"),
    [
        ("unknown", "its name cannot be resolved", "/etc/hosts"),
        ("locked", "ssh needs a password or has no right key", "`ssh locked true` must work"),
        ("strange", "its host key is not known here, or has changed", "run `ssh strange true` once"),
        ("closed", "the host is up, but no sshd listens", "start sshd"),
        ("down", "no answer: it is down, or packets to it are dropped", "switch it on"),
        ("hung", "its sshd does not speak: the host hangs", "restart it"),
        ("odd", "ssh failed (kex_exchange_identification", "`ssh odd true` must work"),
        ("bare", "is not there (bash: line 1", "install the same environment"),
        ("broken", "the probe failed (SyntaxError: x)", "by hand"),
        ("mute", "no answer within 2 s though it takes connections", "look at its load"),
    ],
)
def test_silence_is_told_from_how_ssh_failed(host: str, fault: str, remedy: str) -> None:
    answer = ask_hosts({host: Question()}, ssh_port=None, timeout_s=2)[host]
    assert answer.facts is None
    assert fault in answer.fault and remedy in answer.remedy


def test_host_answers_with_facts_and_its_clock(tmp_path: Path) -> None:
    data = tmp_path / "it's data.bin"
    data.write_bytes(b"abc")
    (tmp_path / ".doctor-t").write_text("t")
    question = Question(
        runs_dir=str(tmp_path), token="t", files=(str(data), "/none"), first="127.0.0.1", toward="127.0.0.1"
    )
    answer = ask_hosts({"good": question}, ssh_port=22, timeout_s=60)["good"]
    own = ask_here(question)
    assert answer.facts is not None and own.facts is not None
    assert answer.facts["files"] == own.facts["files"]
    assert answer.facts["files"][str(data)][0] == 3 and answer.facts["files"]["/none"] == "No such file or directory"
    assert answer.facts["digest"] == own.facts["digest"]
    assert answer.facts["interface"][:2] == ["lo", "127.0.0.1"]
    assert Path(answer.facts["shared"]["written"]).read_text() == "t"
    assert abs(answer.skew_s) < 1


def test_large_files_are_hashed_in_blocks(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(200 << 20)
    first = ask_here(Question(files=(str(large),))).facts
    with large.open("r+b") as file:
        file.write(b"x")
    second = ask_here(Question(files=(str(large),))).facts
    assert first is not None and second is not None
    assert first["files"][str(large)][0] == 200 << 20
    assert first["files"] != second["files"]


@pytest.mark.parametrize("count", [2, 3, 5, 8, 9, 33])
def test_rounds_are_of_disjoint_pairs_and_reach_every_host(count: int) -> None:
    seen = set()
    for pairs in rounds(count):
        members = [member for pair in pairs for member in pair]
        assert len(members) == len(set(members)) and max(members) < count
        assert not seen & set(pairs)
        seen |= set(pairs)
    assert {member for pair in seen for member in pair} == set(range(count))
    if count <= 8:
        assert len(seen) == count * (count - 1) // 2


def test_runs_folder_that_cannot_be_written_here_is_named() -> None:
    with pytest.raises(LaunchError, match=r"cannot write into /proc/1/x: .*; choose another with --runs-dir"):
        examine(Needs(hosts=("good",)), runs_dir=Path("/proc/1/x"), timeout_s=1)


def test_examination_leaves_nothing_in_the_runs_folder(tmp_path: Path) -> None:
    findings, answers = examine(Needs(hosts=("good", "down")), runs_dir=tmp_path / "runs", timeout_s=60)
    silent = [finding.host for finding in failures(findings) if finding.check == "reachable"]
    assert silent == ["down"]
    assert [f.level for f in findings if (f.check, f.host) == ("shared", "good")] == ["ok"]
    assert set(answers) == {"good", "down"}
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(("host", "level"), [("good", "ok"), ("apart", "failed")])
def test_imported_weights_must_be_seen_too(tmp_path: Path, host: str, level: str) -> None:
    findings, _ = examine(Needs(hosts=(host,), bases=True), runs_dir=tmp_path / "runs", timeout_s=60)
    (found,) = [finding for finding in findings if finding.check == "shared"]
    assert found.level == level
    assert ("its .bases, where imported weights lie, is another folder there" in found.message) == (level == "failed")
    assert list((tmp_path / "runs" / ".bases").iterdir()) == []
