"""The list of plugins, by the command itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llama_scale.extensions.api import ADAPTERS, GROUPS
from tests.distributions import DESCRIPTOR, install
from tests.live_runs import environment


def _list(site: Path, *options: str) -> subprocess.CompletedProcess[str]:
    env = {**environment(), "PYTHONPATH": str(site)}
    command = [sys.executable, "-m", "llama_scale", "plugins", "list", *options]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)


def _found(done: subprocess.CompletedProcess[str], name: str) -> list[dict[str, Any]]:
    return [plugin for plugin in json.loads(done.stdout) if plugin["name"] == name]


def test_built_ins_are_listed_ok(tmp_path: Path) -> None:
    done = _list(tmp_path, "--json")

    assert done.returncode == 0, done.stderr
    plugins = [p for p in json.loads(done.stdout) if p["distribution"] == "llama-scale"]
    assert {p["group"] for p in plugins} == set(GROUPS)
    assert {(p["state"], p["reason"]) for p in plugins} == {("ok", "")}
    assert all(p["version"] and p["summary"] and p["target"] for p in plugins)


def test_broken_plugins_are_listed_with_reason_and_hide_nothing(tmp_path: Path) -> None:
    source = "print('noise')\nraise OSError('no driver')"
    install(tmp_path, "bad-dist", points={ADAPTERS: {"bad": "bad_plugin:X"}}, modules={"bad_plugin": source})
    good = DESCRIPTOR.replace("NAME", "mine")
    install(tmp_path, "mine-dist", points={ADAPTERS: {"mine": "mine_plugin:DESCRIPTOR"}}, modules={"mine_plugin": good})
    install(tmp_path, "rotten", points="[llama_scale.tasks]\nno equals sign\n")

    done = _list(tmp_path, "--json")
    table = _list(tmp_path)

    assert done.returncode == table.returncode == 0, done.stderr
    assert _found(done, "bad")[0]["state"] == "broken"
    assert "raised OSError: no driver" in _found(done, "bad")[0]["reason"]
    assert "no module of its implementation no_such_module:Class" in _found(done, "mine")[0]["reason"]
    assert [p["distribution"] for p in json.loads(done.stdout) if p["name"] is None] == ["rotten"]
    assert _found(done, "lora")[0]["state"] == "ok"
    assert "bad-dist" in table.stdout and "noise" not in table.stdout
    assert "broken: adapter 'bad' of bad-dist 1.0" in table.stderr and "broken: rotten: " in table.stderr


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_clash_is_an_error_that_names_both(tmp_path: Path, options: tuple[str, ...]) -> None:
    install(tmp_path, "thief", points={ADAPTERS: {"lora": "mine_plugin:DESCRIPTOR"}}, modules={"mine_plugin": ""})

    done = _list(tmp_path, *options)

    assert done.returncode == 4
    assert "adapter 'lora' is brought by llama-scale" in done.stderr and "thief 1.0" in done.stderr
    assert "clash" in done.stdout and "Traceback" not in done.stderr
