"""The conformance suite finds what is wrong with a plugin, and names it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llama_scale.extensions.api import ADAPTERS, GATES, LAUNCHERS
from tests.distributions import install
from tests.live_runs import environment
from tests.pages import ROOT

pytestmark = pytest.mark.engines

LIGHT = '''
from llama_scale.extensions.api import AdapterDescriptor, AdapterOptions, ExtraParameter, ModelShape
IMPORTS


class Options(AdapterOptions):
    """Options."""


def parameters(options, shape, layer):
    return (
        ExtraParameter(name="shift", shape=(shape.hidden_size,), init="INIT"),
        ExtraParameter(name="unused", shape=(2,)),
    )[: COUNT]


DESCRIPTOR = AdapterDescriptor(
    name="faulty", options=Options, parameters=parameters, implementation="faulty_layer:Shift", summary="",
    not_mergeable=lambda options: None,
)
'''
HEAVY = """
import numpy
import torch
from llama_scale.extensions.adapter import LayerAdapter


class Shift(LayerAdapter):
    def blocks(self):
        return frozenset({"mlp"})

    def block(self, which, y):
        return y + self.weight("shift").to(y.dtype)
"""


def check(site: Path, name: str, *words: str) -> tuple[int, dict[str, dict[str, Any]], str]:
    env = {**environment(), "PYTHONPATH": os.pathsep.join((str(site), str(ROOT))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "llama_scale", "plugins", "check", name, "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=280)
    found = json.loads(done.stdout) if done.stdout else []
    return done.returncode, {one["name"]: one for one in found}, done.stderr


def faulty(site: Path, *, imports: str, init: str, count: int) -> None:
    light = LIGHT.replace("IMPORTS", imports).replace("INIT", init).replace("COUNT", str(count))
    modules = {"faulty_plugin": light, "faulty_layer": HEAVY}
    install(site, "faulty-dist", points={ADAPTERS: {"faulty": "faulty_plugin:DESCRIPTOR"}}, modules=modules)


def test_faults_of_an_adapter_are_named(tmp_path: Path) -> None:
    faulty(tmp_path, imports="import numpy", init="ones", count=2)

    status, checks, said = check(tmp_path, "faulty")

    assert status == 4 and "fails" in said
    details = {name: one["detail"] for name, one in checks.items() if one["status"] == "failed"}
    assert "imports numpy" in details["light descriptor"]
    assert "faulty_layer imports numpy" in details["imports of the implementation"]
    assert "a fresh adapter changes logits by" in details["identity at initialisation"]
    assert "unused got no gradient" in details["trains what it declares, nothing else"]
    assert "merging changes logits by" in details["merged equals unmerged"]


def test_a_gradient_that_is_not_summed_is_found(tmp_path: Path) -> None:
    faulty(tmp_path, imports="", init="zeros", count=1)  # used on a part of the sequence, and not said so

    status, checks, _ = check(tmp_path, "faulty")

    assert status == 4
    assert checks["tensor parallel 2 equals 1"]["status"] == "passed"
    assert checks["pipeline parallel 2 equals 1"]["status"] == "passed"
    assert "partial_gradient" in checks["sequence parallel equals one process"]["detail"]


@pytest.mark.parametrize("name", ["linear", "local"])
def test_gates_and_launchers_are_checked_too(tmp_path: Path, name: str) -> None:
    status, checks, said = check(tmp_path, name)

    assert status == 0, said
    assert {one["status"] for one in checks.values()} == {"passed"}
    assert checks.keys() > {"light descriptor", "implementation"}


GATE = """
from llama_scale.extensions.api import GateDescriptor, GateOptions

DESCRIPTOR = GateDescriptor(
    name="flat", options=GateOptions, parameters=lambda options, shape, adapters: (),
    implementation="flat_gate:Flat", summary="",
)
"""
FLAT = """
from llama_scale.extensions.gate import Gate


class Flat(Gate):
    def forward(self, trunk):
        return trunk[..., :2]
"""


def test_faults_of_names_options_and_gates(tmp_path: Path) -> None:
    points = {GATES: {"flat": "flat_plugin:DESCRIPTOR", "lora": "flat_plugin:DESCRIPTOR"}, LAUNCHERS: {}}
    install(tmp_path, "flat-dist", points=points, modules={"flat_plugin": GATE, "flat_gate": FLAT})

    assert "no plugin is called 'lorra'; did you mean 'lora'?" in check(tmp_path, "lorra")[2]
    assert "is the name of several plugins: adapter and gate; choose one with --kind" in check(tmp_path, "lora")[2]
    assert "options are a mapping" in check(tmp_path, "flat", "--options", "[1]")[2]
    assert "this is no YAML" in check(tmp_path, "flat", "--options", "{")[2]
    assert "cannot be read" in check(tmp_path, "flat", "--options", "@/nowhere")[2]
    status, checks, _ = check(tmp_path, "flat")
    assert status == 4
    assert "scores are [5, 2, 3] torch.float32" in checks["scores"]["detail"]
    unknown = check(tmp_path, "lora", "--kind", "adapter", "--options", "{rnk: 3}")[1]
    assert "did you mean 'rank'?" in unknown["options and parameters"]["detail"]
