"""The distributions under plugins/ install by themselves, and their own tests pass against what is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributions import install_folder, run_tests
from tests.pages import ROOT

pytestmark = pytest.mark.engines

PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))


def test_there_are_an_adapter_and_a_task() -> None:
    assert {"llama-scale-vera", "llama-scale-classification"} <= {path.name for path in PLUGINS}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_worked_plugin(plugin: Path, tmp_path: Path) -> None:
    done = run_tests(plugin, install_folder(plugin, tmp_path / "site"), cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
