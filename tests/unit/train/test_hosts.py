"""Asking hosts, with stand-ins for the ssh client that run the remote command in a real shell of this machine."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from llama_scale import __version__
from llama_scale.errors import LaunchError
from llama_scale.train import hosts
from llama_scale.train.rank_records import Control, RankJob

_SSH = """#!/bin/bash
# The last word is the command, the one before it the host; both are what sshd would get.
command=${@: -1}; set -- "${@:1:$#-1}"; host=${@: -1}
case $host in
  good*) exec bash -c "$command" ;;
  old) exec bash -c "${command/VERSION/0.0.1}" ;;
  slow) sleep 300 ;;
  denied) echo 'root@denied: Permission denied (publickey).' >&2; exit 255 ;;
  bare) echo 'bash: line 1: /opt/python: No such file or directory' >&2; exit 127 ;;
esac
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RankJob:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("ssh", _SSH.replace("VERSION", __version__)), ("pdsh", "#!/bin/sh\n")):
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    job = RankJob(run=str(tmp_path / "it's $(touch pwned)"), attempt=0, environment="e")
    Control(job.attempt_dir).begin()
    return job


def _ask(job: RankJob, *names: str, master_port: int = 0, timeout_s: float = 60) -> None:
    hosts.check_hosts(names, job=job, master_port=master_port, ssh_port=2222, timeout_s=timeout_s)


def test_hosts_that_can_run_are_let_through(job: RankJob, tmp_path: Path) -> None:
    _ask(job, "good1", "good2")
    assert not list(tmp_path.rglob("pwned"))


def test_every_bad_host_is_named_with_what_to_do(job: RankJob) -> None:
    with pytest.raises(LaunchError) as caught:
        _ask(job, "denied", "bare", "good", "old")
    text = str(caught.value)
    assert text.startswith("3 of 4 hosts cannot run:")
    assert "denied: ssh failed: root@denied: Permission denied (publickey).; `ssh denied true` must work" in text
    assert "bare: bash: line 1: /opt/python: No such file or directory" in text
    assert f"old: llama-scale {__version__} is installed there, and 0.0.1 on the machine that launches" in text


def test_host_that_does_not_answer_is_named_in_time(job: RankJob) -> None:
    with pytest.raises(LaunchError, match=r"slow: no answer over ssh within 0.2 s \(launcher.ssh_timeout_s\)"):
        _ask(job, "slow", timeout_s=0.2)


def test_taken_port_on_the_first_host_and_unseen_folder_are_named(job: RankJob) -> None:
    Control(job.attempt_dir).lease.unlink()
    with closing(socket.socket()) as taken:
        taken.bind(("", 0))
        with pytest.raises(LaunchError) as caught:
            _ask(job, "good1", "good2", master_port=taken.getsockname()[1])
    first, second = str(caught.value).splitlines()[1:]
    assert "of the rendezvous cannot be used: Address already in use; set launcher.master_port" in first
    assert "rendezvous" not in second
    assert f"the run folder {job.run} is not seen there; use a folder that all hosts share" in second


def test_missing_programs_are_named(job: RankJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin" / "pdsh").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(LaunchError, match=r"pdsh is not installed here, and the deepspeed command reaches hosts"):
        _ask(job, "good")


def test_only_some_of_many_are_listed(job: RankJob) -> None:
    with pytest.raises(LaunchError, match=r"(?s)12 of 12 hosts cannot run:.*and 4 more"):
        _ask(job, *["denied"] * 12)
