"""Rules about how processes are started: what a launcher can do, and which environment variables a spec may set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llama_scale.errors import Problem
from llama_scale.spec.rule import Rule, problem

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset(
    {
        *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
        *("LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "DS_ENV_FILE", "PDSH_RCMD_TYPE"),
        *("OMP_NUM_THREADS", "LLAMA_SCALE_RUN", "LLAMA_SCALE_ATTEMPT"),
        *("BASH_ENV", "BASH_SOURCE", "IFS", "PATH", "PYTHONHOME", "PYTHONPATH", "PYTHONSAFEPATH"),
    }
)
"""Variables that the launcher decides on itself, or that would change which program runs."""


_THIS_MACHINE = re.compile(r"localhost(\..*)?|127\..*", re.IGNORECASE)


def _hosts(spec: RunSpec) -> Iterator[Problem]:
    if spec.launcher.kind not in ("ssh", "deepspeed", "mpi"):
        return
    ssh = spec.launcher.kind == "ssh"
    hosts, nodes = spec.launcher.hosts, spec.cluster.nodes
    for host, count in Counter(hosts).items():
        if count > 1:
            message, hint = f"{host} is named {count} times", "name each host once; its processes are counted by slots"
        elif _THIS_MACHINE.fullmatch(host):
            # ssh to itself; and every other host would take it for itself.
            message = f"{host} means another machine on each host"
            hint = "use its name in the network, or run on this machine without ssh: " + (
                "launcher.kind: local" if ssh else "leave hosts out"
            )
        else:
            continue
        yield problem("launcher.hosts", message, hint=hint, code="launcher-hosts")
    # mpirun knows the hosts of an allocation itself.
    if len(hosts) != nodes and (hosts or ssh or (nodes > 1 and spec.launcher.kind != "mpi")):
        yield problem(
            "launcher.hosts",
            f"{len(hosts) or 'no'} host{'s' if len(hosts) != 1 else ''} for cluster.nodes={nodes}",
            hint=f"name {nodes} host{'s' if nodes != 1 else ''}"
            + (f", or set cluster.nodes to {len(hosts)}" if hosts else ", or a hostfile")
            + (", or none to run on this machine" if nodes == 1 and not ssh else ""),
            code="launcher-hosts",
        )


def _environment(spec: RunSpec) -> Iterator[Problem]:
    for name, value in spec.launcher.env.items():
        found = _name_fault(name)
        if found is None and "\x00" in value:
            found = "the value holds a NUL byte, which an environment variable cannot", "remove it"
        if found is not None:
            yield Problem(path=("launcher", "env", name), message=found[0], hint=found[1], code="launcher-env")


def _name_fault(name: str) -> tuple[str, str] | None:
    """Say what is wrong with the name of a variable, and what to do."""
    if not _NAME.fullmatch(name):
        message = f"{name!r} is no name of an environment variable"
        return message, "use letters, digits and _, not starting with a digit"
    if name == "OMP_NUM_THREADS":
        return f"{name} is set by the launcher", "set launcher.threads_per_process instead"
    if name in _RESERVED:
        message = f"{name} is set by the launcher or decides which program runs"
        return message, "remove it; export it in the shell that runs llama-scale if it is about finding programs"
    return None


def _named_variables(spec: RunSpec) -> Iterator[Problem]:
    """Check variables that a spec names without their values."""
    launcher = spec.launcher
    for section in ("forward", "secrets"):
        for name in getattr(launcher, section, ()):
            found = _name_fault(name)
            if found is None and name in launcher.env:
                found = f"{name} is in launcher.env too, whose value would win", "keep one"
            if found is not None:
                yield Problem(path=("launcher", section), message=found[0], hint=found[1], code="launcher-env")


RULES = (
    Rule(("launcher", "cluster"), _hosts),
    Rule(("launcher",), _environment),
    Rule(("launcher",), _named_variables),
)
"""All rules of this file."""
