"""The explicit list of environment variables that a bundle sets for its workers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from llama_scale.engines.environment import engine_environment
from llama_scale.errors import Problem, SpecError
from llama_scale.spec.run import RunSpec

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
RESERVED = frozenset(
    {
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "GROUP_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "OMP_NUM_THREADS",
        "LLAMA_SCALE_RUN",
        "LLAMA_SCALE_ATTEMPT",
        "BASH_ENV",
        "BASH_SOURCE",
        "IFS",
        "PATH",
        "PYTHONHOME",
        "PYTHONPATH",
    }
)
"""Variables that the launcher itself decides on, or that would change which program runs."""


def worker_environment(spec: RunSpec) -> dict[str, str]:
    """Return the variables of the workers, sorted by name: general ones, the engine's, then the spec's own.

    Raises:
        SpecError: ``launcher.env`` names a variable that cannot be set.
    """
    problems = [problem for name, value in spec.launcher.env.items() for problem in _check(name, value)]
    if problems:
        raise SpecError(problems)
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


def _check(name: str, value: str) -> list[Problem]:
    path = ("launcher", "env", name)
    if not _NAME.fullmatch(name):
        return [
            Problem(
                path=path,
                message=f"{name!r} is no name of an environment variable",
                hint="use letters, digits and _, not starting with a digit",
                code="env-name",
            )
        ]
    if name in RESERVED:
        hint = (
            "set launcher.threads_per_process instead"
            if name == "OMP_NUM_THREADS"
            else "remove it; export it in the shell that runs llama-scale if it is about finding programs"
        )
        return [
            Problem(
                path=path, message=f"{name} is set by the launcher and cannot be replaced", hint=hint, code="env-name"
            )
        ]
    if "\x00" in value:
        return [Problem(path=path, message="the value holds a NUL byte", hint="remove it", code="env-value")]
    return []
