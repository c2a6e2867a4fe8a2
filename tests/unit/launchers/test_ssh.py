"""The bundle of launcher.kind: ssh."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from llama_scale.errors import SpecError
from llama_scale.launchers.base import Bundle, load_launcher
from llama_scale.plan.run_plan import make_plan
from llama_scale.spec.load import load_spec
from tests.live_runs import environment, write_spec

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CASES = {
    "ssh": ("launcher={kind: ssh, hosts: [node1, node2], env: {NCCL_DEBUG: WARN}}",),
    "ssh-options": (
        "launcher={kind: ssh, hosts: [node1, node2], ssh_port: 2222, master_port: 23456, threads_per_process: 3, "
        "grace_s: 5.5, lease_s: 12, forward: [WANDB_API_KEY]}",
    ),
}
_HOSTILE = 'it\'s "$(touch pwned)" `touch pwned` \\ $HOME\nü; touch pwned #'


def _render(folder: Path, *overrides: str, python: str = "/opt/python/bin/python3") -> Bundle:
    spec = load_spec(write_spec(folder), overrides=["cluster.nodes=2", "cluster.devices_per_node=2", *overrides])
    return load_launcher("ssh").render(spec, make_plan(spec), python=python)


@pytest.mark.parametrize("case", CASES)
def test_rendered_text_is_the_golden_one(tmp_path: Path, case: str) -> None:
    # A change of the template is reviewed as a change of these files: LS_UPDATE_GOLDEN=1 rewrites them.
    files = _render(tmp_path, *CASES[case]).files
    for name in ("launch.sh", "env", "forward", "hostfile"):
        golden = GOLDEN / case / name
        if os.environ.get("LS_UPDATE_GOLDEN"):
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_text(files[name], encoding="utf-8")
        assert files[name] == golden.read_text(encoding="utf-8")


def test_same_spec_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _render(tmp_path, *CASES["ssh"])
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.chdir(tmp_path)
    assert _render(tmp_path, *CASES["ssh"]).digest == first.digest


def test_hostfile_stands_for_hosts(tmp_path: Path) -> None:
    write_spec(tmp_path)
    (tmp_path / "hosts").write_text("# ours\nnode1 slots=8\nnode2 slots=2\n", encoding="utf-8")
    bundle = _render(tmp_path, f"launcher={{kind: ssh, hostfile: {tmp_path}/hosts}}")
    assert bundle.files["hostfile"] == "node1 slots=2\nnode2 slots=2\n"


@pytest.mark.parametrize(
    ("launcher", "message"),
    [
        ("{kind: ssh}", "no hosts for cluster.nodes=2"),
        ("{kind: ssh, hosts: [node1]}", "1 host for cluster.nodes=2"),
        ("{kind: ssh, hosts: [node1, node1]}", "node1 is named 2 times"),
        ("{kind: ssh, hosts: [node1, localhost]}", "localhost means another machine on each host"),
        ("{kind: ssh, hosts: [node1, '-oProxyCommand=x']}", "hosts"),
        ("{kind: ssh, hosts: [node1, node2], lease_s: 1}", "lease_s"),
        ("{kind: ssh, hosts: [node1, node2], forward: [PATH]}", "PATH"),
    ],
)
def test_hosts_that_cannot_be_meant_are_refused(tmp_path: Path, launcher: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        _render(tmp_path, f"launcher={launcher}")


def test_hostile_names_really_run(tmp_path: Path) -> None:
    # The interpreter is a script that writes down what it was called with: launch.sh is executed as it is.
    here = tmp_path / _HOSTILE.replace("/", "")
    here.mkdir()
    python = here / "py thon"
    python.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" > {tmp_path}/argv\n", encoding="utf-8")
    python.chmod(0o755)
    launcher = json.dumps({"kind": "ssh", "hosts": ["node1", "node2"], "env": {"HOSTILE": _HOSTILE}})
    bundle = _render(tmp_path / "spec", f"launcher={launcher}", python=str(python))
    folder = here / "bundle"
    folder.mkdir()
    for name, text in bundle.files.items():
        (folder / name).write_text(text, encoding="utf-8")

    done = subprocess.run(
        ["bash", "launch.sh", str(here / "run")], cwd=folder, env=environment(), capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    argv = (tmp_path / "argv").read_bytes().decode().split("\0")[:-1]
    assert argv[:5] == ["-P", "-m", "llama_scale.train.ssh_agent", "--run", str(here / "run")]
    assert (folder / argv[argv.index("--env-file") + 1]).read_text(encoding="utf-8") == bundle.files["env"]
    assert not list(tmp_path.rglob("pwned"))
