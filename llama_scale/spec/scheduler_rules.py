"""Rules about schedulers: what a job asks of Slurm, what an object asks of Kubernetes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from llama_scale.errors import Problem
from llama_scale.spec.rule import Rule, problem

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec

_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_OWN_OPTIONS = {
    "account": "set launcher.account",
    "array": "launch one run a job: an array would start the same run several times in one run folder",
    "chdir": "remove it; all paths of a run are absolute",
    "dependency": "set launcher.chain to queue jobs one after another",
    "error": "remove it; output goes to the run folder",
    "exclusive": "set launcher.exclusive",
    "export": "name the variables in launcher.forward",
    "export-file": "name the variables in launcher.forward",
    "gpus-per-node": "set cluster.devices_per_node, or launcher.gres",
    "gres": "set launcher.gres",
    "input": "remove it",
    "job-name": "set name",
    "nodes": "set cluster.nodes",
    "no-requeue": "set launcher.requeue to false",
    "ntasks": "set cluster.nodes: there is one task a node, which forks its ranks",
    "ntasks-per-node": "remove it: there is one task a node, which forks its ranks",
    "cpus-per-task": "set launcher.cpus_per_node",
    "open-mode": "remove it; logs are appended to",
    "output": "remove it; output goes to the run folder",
    "parsable": "remove it",
    "partition": "set launcher.partition",
    "qos": "set launcher.qos",
    "requeue": "set launcher.requeue",
    "signal": "set launcher.grace_s",
    "test-only": "use llama-scale launch --dry-run",
    "time": "set launcher.time",
    "wait": "follow the run with llama-scale logs -f",
    "wrap": "remove it; the bundle has the script",
}
"""Options of sbatch that the launcher sets itself, or that would break it -> what to do instead."""

_SIGNAL_SLACK_S = 60
"""Slurm sends the signal before the limit up to a minute earlier than asked (sbatch --signal)."""
_QUALIFIED = re.compile(r"(?:[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def time_limit_s(text: str) -> int:
    """Return the seconds of Slurm's time: minutes, ``M:S``, ``H:M:S``, ``D-H``, ``D-H:M`` or ``D-H:M:S``.

    >>> [time_limit_s(text) for text in ("90", "10:30", "01:00:00", "1-2", "1-02:03:04")]
    [5400, 630, 3600, 93600, 93784]
    """
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def signal_lead_s(grace_s: float) -> int:
    """Return how long before the time limit a job asks for its signal: its grace and time to leave."""
    return math.ceil(grace_s) + 30


def _slurm_options(spec: RunSpec) -> Iterator[Problem]:
    if spec.launcher.kind != "slurm":
        return
    for name in spec.launcher.options:
        if not _OPTION.fullmatch(name):
            message, hint = f"{name!r} is no long option of sbatch", "write it without --, e.g. constraint"
        elif name in _OWN_OPTIONS:
            message, hint = f"--{name} is the launcher's to set", _OWN_OPTIONS[name]
        else:
            continue
        yield Problem(path=("launcher", "options", name), message=message, hint=hint, code="launcher-slurm-option")


def _slurm_time(spec: RunSpec) -> Iterator[Problem]:
    if spec.launcher.kind != "slurm" or spec.launcher.time is None:
        return
    limit, lead = time_limit_s(spec.launcher.time), signal_lead_s(spec.launcher.grace_s) + _SIGNAL_SLACK_S
    if limit < 2 * lead:
        yield problem(
            "launcher.time",
            f"a job of {limit} s is told to save up to {lead} s before its end (launcher.grace_s="
            f"{spec.launcher.grace_s:g} and time to leave), so it would hardly train",
            hint=f"ask for at least {-(-2 * lead // 60)} minutes, or set a shorter grace_s",
            code="launcher-slurm-time",
        )


def _kubernetes_names(spec: RunSpec) -> Iterator[Problem]:
    launcher = spec.launcher
    if launcher.kind != "kubernetes":
        return
    for section in ("resources", "node_selector", "labels"):
        for name in getattr(launcher, section):
            if not _QUALIFIED.fullmatch(name):
                yield Problem(
                    path=("launcher", section, name),
                    message=f"{name!r} is no name of Kubernetes",
                    hint="write DOMAIN/NAME or NAME of letters, digits, -, _ and ., e.g. rdma/hca",
                    code="launcher-kubernetes-name",
                )
    if launcher.gpu_resource in launcher.resources and spec.cluster.device == "cuda":
        yield Problem(
            path=("launcher", "resources", launcher.gpu_resource),
            message=f"{launcher.gpu_resource} is asked for by cluster.devices_per_node={spec.cluster.devices_per_node}",
            hint="remove it",
            code="launcher-kubernetes-gpus",
        )


def _kubernetes_mounts(spec: RunSpec) -> Iterator[Problem]:
    launcher = spec.launcher
    if launcher.kind != "kubernetes":
        return
    paths = [launcher.runs_path, *(volume.path for volume in launcher.volumes), "/dev/shm", "/llama-scale"]
    for path, count in Counter(path.rstrip("/") or "/" for path in paths).items():
        if count > 1 or path == "/":
            yield problem(
                "launcher.volumes",
                f"{path} is mounted {count} times" if count > 1 else "/ cannot be mounted over",
                hint="give each claim a path of its own; /dev/shm and /llama-scale are taken",
                code="launcher-kubernetes-mounts",
            )


RULES = (
    Rule(("launcher",), _slurm_options),
    Rule(("launcher",), _slurm_time),
    Rule(("launcher", "cluster"), _kubernetes_names),
    Rule(("launcher",), _kubernetes_mounts),
)
"""All rules of this file."""
