"""The explicit list of environment variables that a bundle sets for its workers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from llama_scale.engines.environment import engine_environment
from llama_scale.spec.run import RunSpec


def worker_environment(spec: RunSpec) -> dict[str, str]:
    """Return the variables of the workers, sorted by name: general ones, the engine's, then the spec's own.

    The spec's rules (``spec/launcher_rules.py``) have refused names that a shell could not set.
    """
    values = {
        # Lines reach the log files when they are printed, also when the process is killed afterwards.
        "PYTHONUNBUFFERED": "1",
        # The agent forks its ranks; the tokenizers library warns at each use of its thread pool after a fork.
        "TOKENIZERS_PARALLELISM": "false",
    }
    if spec.cluster.device == "cpu" and spec.cluster.nodes == 1:
        # gloo otherwise looks the host's own name up, which fails or is slow on many laptops and containers.
        values["GLOO_SOCKET_IFNAME"] = "lo"
    values |= engine_environment(spec)
    values |= spec.launcher.env
    return dict(sorted(values.items()))


def render_environment(values: Mapping[str, str]) -> str:
    """Return the text of a file of assignments that a POSIX shell reads back exactly."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
