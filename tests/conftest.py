"""Settings of all tests: environment, hypothesis, and which tests may run on this machine."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.process_state import ProcessGuard, forget_surroundings

CI = bool(os.environ.get("CI"))

forget_surroundings()

# No deadline, and no test is too slow: the machine's load must not decide. The same examples everywhere and each time;
# only `make soak` draws others, and names the seed.
_COMMON: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fixed", derandomize=True, **_COMMON)
settings.register_profile("soak", max_examples=2000, **_COMMON)
settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    """Let no test leave limits, handlers, environment and the like changed."""
    config.pluginmanager.register(ProcessGuard(), "process-guard")


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
