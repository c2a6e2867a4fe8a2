from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest

from llama_scale.errors import SpecError
from llama_scale.launchers.base import Bundle
from llama_scale.launchers.environment import render_environment
from llama_scale.launchers.local import LocalLauncher
from llama_scale.launchers.processes import is_alive
from llama_scale.launchers.template import fill
from llama_scale.plan.run_plan import make_plan
from llama_scale.spec.load import load_spec
from tests.live_runs import environment, wait_for, write_spec

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "local"
_HOSTILE = 'it\'s "$(touch pwned)" `touch pwned` \\ $HOME\n\u00fc; touch pwned #'


def _render(folder: Path, *overrides: str, python: str = "/opt/python/bin/python3") -> Bundle:
    spec = load_spec(write_spec(folder), overrides=overrides)
    return LocalLauncher().render(spec, make_plan(spec), python=python)


@pytest.mark.parametrize("name", ["launch.sh", "env"])
def test_rendered_text_is_the_golden_one(tmp_path: Path, name: str) -> None:
    # A change of the template is reviewed as a change of this file: LS_UPDATE_GOLDEN=1 rewrites it.
    text = _render(tmp_path).files[name]
    if os.environ.get("LS_UPDATE_GOLDEN"):
        GOLDEN.mkdir(parents=True, exist_ok=True)
        (GOLDEN / name).write_text(text, encoding="utf-8")
    assert text == (GOLDEN / name).read_text(encoding="utf-8")


def test_same_spec_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _render(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.chdir(tmp_path)
    again = _render(tmp_path)

    assert first.files == again.files and first.digest == again.digest
    assert _render(tmp_path, "seed=8").digest != first.digest


def test_bundle_holds_the_resolved_spec_and_its_plan(tmp_path: Path) -> None:
    bundle = _render(tmp_path)
    (tmp_path / "again.yaml").write_text(bundle.files["spec.yaml"], encoding="utf-8")

    assert load_spec(tmp_path / "again.yaml") == load_spec(tmp_path / "spec.yaml")
    assert json.loads(bundle.files["plan.json"])["topology"] == {"dp_size": 1, "tp_size": 2, "pp_size": 2}


def test_threads_follow_cores_unless_the_spec_says_so(tmp_path: Path) -> None:
    assert "OMP_NUM_THREADS=3\n" in _render(tmp_path, "launcher.threads_per_process=3").files["launch.sh"]
    script = _render(tmp_path, "launcher.threads_per_process=null").files["launch.sh"]
    assert "OMP_NUM_THREADS=$((cores > 4 ? cores / 4 : 1))\n" in script


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("A B", "x", "'A B' is no name of an environment variable"),
        ("X;touch pwned", "x", "is no name of an environment variable"),
        ("1X", "x", "not starting with a digit"),
        ("RANK", "0", "RANK is set by the launcher or decides which program runs"),
        ("OMP_NUM_THREADS", "4", "set launcher.threads_per_process instead"),
        ("X", "a\x00b", "NUL"),
    ],
)
def test_variables_that_cannot_be_set_are_refused(tmp_path: Path, name: str, value: str, message: str) -> None:
    text = json.dumps({name: value})
    with pytest.raises(SpecError, match=message):
        load_spec(write_spec(tmp_path), overrides=[f"launcher.env={text}"])


def test_several_hosts_are_planned_but_not_rendered(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"the local launcher starts processes on this machine only, and cluster.nodes=2"
    ):
        _render(tmp_path, "cluster.nodes=2", "cluster.devices_per_node=2")


def test_a_value_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match=r"processes"):
        fill("local/launch.sh.j2", python="x")


def test_environment_survives_the_shell() -> None:
    script = f"set -a\n{render_environment({'HOSTILE': _HOSTILE})}exec env -0\n"
    out = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout
    assert f"HOSTILE={_HOSTILE}".encode() in out.split(b"\0")


def test_hostile_names_and_values_really_run(tmp_path: Path) -> None:
    # The interpreter is a script that writes down what it was called with: launch.sh is executed as it is.
    here = tmp_path / _HOSTILE.replace("/", "")
    here.mkdir()
    python = here / "py thon"
    python.write_text(
        f"#!/bin/sh\nprintf '%s\\0' \"$@\" > {tmp_path}/argv; env -0 > {tmp_path}/environ\n", encoding="utf-8"
    )
    python.chmod(0o755)
    value = json.dumps({"HOSTILE": _HOSTILE})
    bundle = _render(tmp_path / "spec", f"launcher.env={value}", python=str(python))
    folder = here / "bundle"
    folder.mkdir()
    for name, text in bundle.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    run = here / "run"

    calls = [["bash", str(folder / "launch.sh"), str(run)]]
    calls.append(["bash", "launch.sh", str(run)])  # by its bare name, from its folder
    for call in calls:
        done = subprocess.run(
            call,
            cwd=folder,
            env=environment(PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="77"),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        argv = (tmp_path / "argv").read_bytes().decode().split("\0")
        assert argv[:5] == ["-P", "-m", "llama_scale.train.agent", "--run", str(run)]
        variables = dict(
            pair.split("=", 1) for pair in (tmp_path / "environ").read_bytes().decode().split("\0") if pair
        )
        assert variables["HOSTILE"] == _HOSTILE
        assert variables["OMP_NUM_THREADS"] == "1"
        assert "PYTHONDONTWRITEBYTECODE" not in variables
    assert (run / "spec.yaml").read_text(encoding="utf-8") == bundle.files["spec.yaml"]
    assert not list(tmp_path.rglob("pwned"))


def test_script_refuses_a_folder_of_another_run(tmp_path: Path) -> None:
    for name, text in _render(tmp_path / "spec", python=sys.executable).files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    run = tmp_path / "run"
    run.mkdir()
    (run / "spec.yaml").write_text("version: 1\n", encoding="utf-8")

    done = subprocess.run(["bash", tmp_path / "launch.sh", run], capture_output=True, text=True)
    usage = subprocess.run(["bash", tmp_path / "launch.sh"], capture_output=True, text=True)

    assert done.returncode == 5
    assert f"{run}/spec.yaml is not the one of this bundle" in done.stderr
    assert (usage.returncode, usage.stderr) == (2, "usage: bash launch.sh RUN_DIR\n")


def test_second_launch_into_a_folder_is_refused_while_a_process_of_the_first_lives(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 300 &\necho $!\n", encoding="utf-8")  # leaves a process behind, as a rank
    python.chmod(0o755)
    for name, text in _render(tmp_path / "spec", python=str(python)).files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    call = ["bash", str(tmp_path / "launch.sh"), str(tmp_path / "run")]
    with (tmp_path / "out").open("w") as out:
        subprocess.run(call, stdout=out, check=True)
    left = int((tmp_path / "out").read_text())

    try:
        second = subprocess.run(call, capture_output=True, text=True)
    finally:
        os.kill(left, signal.SIGKILL)

    assert second.returncode == 5
    assert second.stderr == f"launch.sh: {tmp_path}/run is in use by another launch; one run folder has one at a time\n"
    wait_for(lambda: not is_alive(left))
    with (tmp_path / "out").open("w") as out:
        subprocess.run(call, stdout=out, check=True)
    os.kill(int((tmp_path / "out").read_text()), signal.SIGKILL)
