"""The distributions under plugins/ install by themselves, and their own tests pass against what is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live_runs import environment
from tests.pages import ROOT

pytestmark = pytest.mark.engines

PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))


def test_there_are_an_adapter_and_a_task() -> None:
    assert {"llama-scale-vera", "llama-scale-classification"} <= {path.name for path in PLUGINS}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_worked_plugin(plugin: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    built = subprocess.run([*command, str(plugin)], capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    env = {**environment(), "PYTHONPATH": os.pathsep.join((str(site), str(ROOT))), "OMP_NUM_THREADS": "1"}
    # From elsewhere and without this project's settings, as a stranger's CI would: only what is installed counts.
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(plugin / "tests")]
    done = subprocess.run(tests, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=240)

    assert done.returncode == 0, done.stdout + done.stderr
