"""The head of a run over ssh, with a stand-in for the ssh client that runs commands in a shell of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llama_scale.train.ssh_agent import forwarded
from llama_scale.train.ssh_channel import ssh_command
from tests.live_runs import environment

_SSH = """#!/bin/bash
# The last word is the command, the one before it the host; both are what sshd would get.
command=${@: -1}; set -- "${@:1:$#-1}"; host=${@: -1}
case $host in
  good*) exec bash -c "$command" ;;
  slow) exec sleep 300 ;;
  denied) echo 'root@denied: Permission denied (publickey).' >&2; exit 255 ;;
  bare) echo 'bash: line 1: /opt/python: No such file or directory' >&2; exit 127 ;;
esac
"""


def head(run: Path, *hosts: str, path: str | None = None, files: bool = True) -> tuple[int, dict[str, Any], str]:
    programs = run / "bin"
    programs.mkdir(parents=True)
    (programs / "ssh").write_text(_SSH, encoding="utf-8")
    (programs / "ssh").chmod(0o755)
    if files:
        (run / "hostfile").write_text("".join(f"{host} slots=1\n" for host in hosts), encoding="utf-8")
        (run / "env").write_text("A='it is'\n", encoding="utf-8")
        (run / "forward").write_text("# names\nNCCL_*\n", encoding="utf-8")
    command = [sys.executable, "-P", "-m", "llama_scale.train.ssh_agent", "--run", str(run), "--nproc-per-node", "1"]
    command += [
        word
        for name in ("hostfile", "env-file", "forward-file")
        for word in (f"--{name}", str(run / name.removesuffix("-file")))
    ]
    command += ["--ssh-timeout-s", "5", "--lease-s", "5"]
    done = subprocess.run(
        command, env=environment(PATH=path or f"{programs}:{os.environ['PATH']}"), capture_output=True, text=True
    )
    verdict = json.loads((run / "attempts" / "000" / "verdict.json").read_text(encoding="utf-8"))
    return done.returncode, verdict, done.stderr


def test_every_bad_host_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    status, verdict, said = head(tmp_path / "it's $(touch pwned)", "good1", "denied", "bare", "slow")
    assert status == 5
    assert verdict["first_failure"]["kind"] == "infrastructure"
    message = verdict["message"]
    assert message.startswith("3 of 4 hosts cannot run:")
    assert "denied: ssh failed: root@denied: Permission denied (publickey).; `ssh denied true` must work" in message
    assert "bare: bash: line 1: /opt/python: No such file or directory" in message
    assert "slow: no answer over ssh within 5 s (launcher.ssh_timeout_s)" in message
    assert message in said
    assert not list(tmp_path.rglob("pwned"))


def test_machine_without_ssh_is_named(tmp_path: Path) -> None:
    status, verdict, _ = head(tmp_path / "run", "good1", path=str(Path(sys.executable).parent))
    assert status == 5
    assert "ssh is not installed here" in verdict["message"]


def test_damaged_bundle_is_named(tmp_path: Path) -> None:
    status, verdict, _ = head(tmp_path / "run", files=False)
    assert status == 5 and "hostfile: No such file" in verdict["message"]
    shutil.rmtree(tmp_path / "run")
    status, verdict, _ = head(tmp_path / "run", "-oProxyCommand=x")
    assert status == 5 and "render the bundle again" in verdict["message"]


def test_only_named_variables_are_passed_on() -> None:
    shell = {"NCCL_DEBUG": "INFO", "HOME": "/root", "WANDB_API_KEY": "k", "SECRET": "s", "LLAMA_SCALE_RUN": "r"}
    assert forwarded(shell, ["# NCCL_*", "NCCL_*", "WANDB_API_KEY"]) == {
        "NCCL_DEBUG": "INFO",
        "WANDB_API_KEY": "k",
        "LLAMA_SCALE_RUN": "r",
    }


@pytest.mark.parametrize("lease_s", [5.0, 100.0])
def test_connection_outlasts_the_lease(lease_s: float) -> None:
    command = ssh_command("node1", ["a b", "$x"], timeout_s=0.2, lease_s=lease_s, port=2222)
    count = next(int(word.partition("=")[2]) for word in command if word.startswith("ServerAliveCountMax"))
    assert 5 * count > lease_s
    assert command[-2:] == ["node1", "exec 'a b' '$x'"] and "ConnectTimeout=1" in command
