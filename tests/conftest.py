"""Settings of all tests: bytecode, hypothesis, and which tests may run on this machine."""

from __future__ import annotations

import os
import sys

import pytest
from hypothesis import settings

CI = bool(os.environ.get("CI"))

# Tests start many processes; without .pyc files each would compile its imports again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# No deadline: the machine's load must not decide. In CI the same examples every time.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if CI else "here")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests that would change the machine, or need what it lacks; each says why."""
    _leave_out_soak_tests(config, items)
    may_change_machine = os.geteuid() == 0 and (CI or bool(os.environ.get("LS_CLUSTER")))
    for item in items:
        if item.get_closest_marker("cluster") and not may_change_machine:
            item.add_marker(pytest.mark.skip(reason="cluster tests need root and CI=1 or LS_CLUSTER=1"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="NOT RUN: torch sees no CUDA device"))


def _leave_out_soak_tests(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the long lists out unless they are asked for, by ``-m soak`` or by name (``file.py::test[case]``)."""
    if "soak" in config.option.markexpr or any("::" in argument for argument in config.args):
        return
    soak = [item for item in items if item.get_closest_marker("soak")]
    if soak:
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]


def _has_gpu() -> bool:
    import torch  # lazy: unit tests of the light parts run without it

    return bool(torch.cuda.is_available())
