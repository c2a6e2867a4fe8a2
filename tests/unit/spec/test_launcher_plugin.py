"""A launcher that a plugin brings: named in a spec, checked at its line, rendered by `launch --dry-run`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from llama_scale.errors import PLUGIN_CODE
from llama_scale.extensions.api import LAUNCHERS
from llama_scale.spec.load import check_text, dump_spec
from llama_scale.spec.plugin_schema import installed_schema
from tests.distributions import install
from tests.live_runs import environment, write_spec
from tests.pages import ROOT
from tests.unit.spec.documents import INLINE, document

LIGHT = '''
from pydantic import Field
from llama_scale.extensions.api import LauncherDescriptor, Section


class Options(Section):
    """Options."""

    queue: str = Field("short", description="Queue.")


DESCRIPTOR = LauncherDescriptor(
    name="pond", options=Options, implementation="pond_launcher:Pond", summary="a queue of one's own"
)
'''
HEAVY = """
from llama_scale.launchers.base import Bundle
from llama_scale.spec.load import dump_spec


class Pond:
    def render(self, spec, plan, *, python):
        files = {"spec.yaml": dump_spec(spec), "plan.json": plan.to_json(), "queue": spec.launcher.options["queue"]}
        return Bundle(files=files)

    def submit(self, run, *, bundle, environment, log):
        raise NotImplementedError
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    modules = {"pond_plugin": LIGHT, "pond_launcher": HEAVY}
    install(folder, "pond-dist", points={LAUNCHERS: {"pond": "pond_plugin:DESCRIPTOR"}}, modules=modules)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "pond_plugin", raising=False)
    return folder


def _check(**launcher: Any) -> Any:
    data = document(model=INLINE, launcher={"kind": "pond", **launcher})
    return check_text(json.dumps(data), name="run.yaml", folder="/", env={})


def test_its_section_is_filled_in_and_reads_back(site: Path) -> None:
    loaded = _check(grace_s=5, env={"A": "b"})

    assert loaded.problems == ()
    assert loaded.spec.launcher.options == {"queue": "short"}
    text = dump_spec(loaded.spec)
    assert "queue: short" in text
    assert check_text(text, name="x").spec == loaded.spec


@pytest.mark.parametrize(
    ("launcher", "told"),
    [
        ({"options": {"quue": "x"}}, "launcher.options.quue: unknown key 'quue'; did you mean 'queue'?"),
        ({"options": {"queue": 3}}, "launcher.options.queue: 3 is not text"),
        ({"grace": 3}, "launcher.grace: unknown key 'grace'; did you mean 'grace_s'?"),
        ({"env": {"OMP_NUM_THREADS": "1"}}, "launcher.env.OMP_NUM_THREADS: OMP_NUM_THREADS is set by the launcher"),
    ],
)
def test_faults_are_named_at_their_place(site: Path, launcher: dict[str, Any], told: str) -> None:
    found = [f"{p.dotted}: {p.message}; {p.hint}" for p in _check(**launcher).problems]

    assert any(line.startswith(told) for line in found), found


def test_a_broken_one_is_the_plugins_fault_and_an_unknown_one_the_specs(site: Path) -> None:
    (site / "pond_plugin.py").write_text("raise OSError('dry')")

    assert [p.code for p in _check().problems] == [PLUGIN_CODE]
    data = document(launcher={"kind": "lake"})
    assert "unknown-kind" in {p.code for p in check_text(json.dumps(data), name="x", folder="/", env={}).problems}


def test_schema_has_it(site: Path) -> None:
    validator = jsonschema.Draft202012Validator(installed_schema()[0])

    assert validator.is_valid(document(launcher={"kind": "pond", "options": {"queue": "long"}}))
    assert validator.is_valid(document(launcher={"kind": "local"}))
    assert not validator.is_valid(document(launcher={"kind": "pond", "options": {"length": 3}}))


def test_launch_renders_its_bundle(site: Path, tmp_path: Path) -> None:
    spec = write_spec(tmp_path / "spec")
    env = {**environment(), "PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))}
    command = [sys.executable, "-m", "llama_scale", "launch", str(spec), "--dry-run", "--out", str(tmp_path / "out")]
    change = ["--set", "launcher={kind: pond, options: {queue: deep}}"]

    done = subprocess.run([*command, *change], capture_output=True, text=True, env=env, timeout=60)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "queue").read_text() == "deep"
