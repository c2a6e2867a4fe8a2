"""Render bundles of tiny specs, and hold them against their golden files."""

from __future__ import annotations

import os
from pathlib import Path

from llama_scale.launchers.base import Bundle, load_launcher
from llama_scale.plan.run_plan import make_plan
from llama_scale.spec.load import load_spec
from tests.live_runs import write_spec

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
TWO_HOSTS = ("cluster.nodes=2", "cluster.devices_per_node=2")
HOSTILE = 'it\'s "$(touch pwned)" `touch pwned` \\ $HOME $$x\n-x \u00fc; touch pwned #'
"""Text that a shell, sbatch, mpirun or Kubernetes would change if it were not passed on with care."""


def render(folder: Path, kind: str, *overrides: str, python: str = "/opt/python/bin/python3") -> Bundle:
    """Return the bundle of the tiny spec with changes."""
    spec = load_spec(write_spec(folder), overrides=overrides)
    return load_launcher(kind).render(spec, make_plan(spec), python=python)


def assert_golden(bundle: Bundle, case: str, *names: str) -> None:
    """Compare files with the golden ones; LS_UPDATE_GOLDEN=1 rewrites them, and the diff is reviewed."""
    for name in names:
        golden = GOLDEN / case / name
        if os.environ.get("LS_UPDATE_GOLDEN"):
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_text(bundle.files[name], encoding="utf-8")
        assert bundle.files[name] == golden.read_text(encoding="utf-8"), f"{case}/{name}"


def write_program(folder: Path, name: str, text: str) -> Path:
    """Write a program that stands in for one of a cluster; ``folder`` goes first into PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path
