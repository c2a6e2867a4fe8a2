"""The explicit lists of environment variables: what a bundle sets for its workers, what it takes from the shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from llama_scale.engines.environment import engine_environment
from llama_scale.spec.run import RunSpec

NETWORK_VARIABLES = ("FI_*", "GLOO_*", "NCCL_*", "UCX_*")
"""Forwarded from the shell that launches, whatever the launcher: those of the network libraries."""
BASE_VARIABLES = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "TZ", "USER")
"""Forwarded as well where a job would otherwise start with nothing."""
_FORWARD_HEAD = "# Taken from the shell that launches, if set there. Values are in no file; the variables of env win.\n"


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


def render_forward(names: Sequence[str]) -> str:
    """Return the text of a bundle's ``forward``: names, or patterns with ``*``, one a line.

    >>> print(render_forward(["WANDB_API_KEY"]).splitlines()[-1])
    WANDB_API_KEY
    """
    return _FORWARD_HEAD + "".join(f"{name}\n" for name in sorted({*NETWORK_VARIABLES, *names}))


def forwarded(environment: Mapping[str, str], text: str) -> dict[str, str]:
    """Return the variables of an environment that a bundle's ``forward`` names, sorted.

    >>> forwarded({"NCCL_DEBUG": "INFO", "HF_TOKEN": "x"}, "# comment\\nNCCL_*\\n")
    {'NCCL_DEBUG': 'INFO'}
    """
    patterns = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {
        name: value
        for name, value in sorted(environment.items())
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def forward_regex(patterns: Sequence[str]) -> str:
    """Return patterns as one regular expression for ``grep -E``.

    >>> forward_regex(["NCCL_*", "HF_TOKEN"])
    '^(HF_TOKEN|NCCL_.*)$'
    """
    return "^(" + "|".join(pattern.replace("*", ".*") for pattern in sorted(set(patterns))) + ")$"
