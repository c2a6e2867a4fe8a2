"""Talk to a Kubernetes cluster through kubectl: apply, get, patch, logs."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, urlencode

from llama_scale.errors import LaunchError
from llama_scale.launchers.environment import forwarded
from llama_scale.launchers.kubernetes_jobs import JOBS, Flavour
from llama_scale.launchers.kubernetes_objects import RUN_NAME, dump_objects
from llama_scale.launchers.queue import JobView, call
from llama_scale.spec.launcher_kubernetes import KubernetesLauncher
from llama_scale.spec.run import RunSpec
from llama_scale.spec.secret import secret_kind

_call = functools.partial(call, absent="install it; launcher.kind: kubernetes works through it", timeout_s=60.0)
_NAME_CHARACTERS = 40
"""Length of a job's name: names of pods add to it, and have 63."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobName:
    """Name a job of a cluster; written ``RESOURCE/NAME?context=C&namespace=N``."""

    resource: str
    name: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> JobName:
        """Undo ``str``."""
        head, _, query = text.partition("?")
        resource, _, name = head.partition("/")
        return cls(resource=resource, name=name, options=tuple(parse_qsl(query)))

    def __str__(self) -> str:
        return f"{self.resource}/{self.name}" + (f"?{urlencode(self.options)}" if self.options else "")

    @property
    def flavour(self) -> Flavour:
        """What kind of job it is."""
        return next(flavour for flavour in JOBS.values() if flavour.resource == self.resource)

    def command(self, *words: str) -> list[str]:
        """Return a call of kubectl in the job's cluster and namespace."""
        return ["kubectl", *(f"--{key}={value}" for key, value in self.options), *words]


class KubernetesQueue:
    """See ``Queue``. Cancelling takes the pods away, which save before they leave."""

    cancel_saves = True

    def submit(self, run: Path, *, bundle: Path, spec: RunSpec, environment: Mapping[str, str]) -> tuple[str, ...]:
        """Apply ``job.yaml`` under the run's name, in place of a job that this run had before."""
        launcher = spec.launcher
        assert isinstance(launcher, KubernetesLauncher), "the caller has looked at launcher.kind"
        name = object_name(run.name)
        options = {"context": launcher.context, "namespace": launcher.namespace}
        job = JobName(
            resource=JOBS[launcher.flavour].resource,
            name=name,
            options=tuple((key, value) for key, value in options.items() if value is not None),
        )
        text = (bundle / "job.yaml").read_text(encoding="utf-8").replace(RUN_NAME, name)
        variables = forwarded(environment, (bundle / "forward").read_text(encoding="utf-8"))
        _call(*job.command("delete", f"{job.resource}/{name}", "--ignore-not-found", "--wait=true"))
        _call(*job.command("apply", "-f", "-"), text=text + dump_objects([_forwarded_map(job, variables)]))
        return (str(job),)

    def look(self, jobs: Sequence[str]) -> JobView:
        """Return how the job is doing, from its conditions."""
        job = JobName.parse(jobs[-1])
        words = f"{job.resource.partition('.')[0]} {job.name}"
        try:
            shown = _call(*job.command("get", f"{job.resource}/{job.name}", "-o", "json", "--ignore-not-found"))
        except LaunchError as error:
            return JobView(phase="unknown", words=str(error))
        if not shown.strip():
            return JobView(phase="ended", words=f"{words} is no longer in the cluster")
        return judge_job(json.loads(shown), job.flavour, words=words)

    def cancel(self, jobs: Sequence[str], *, waiting_only: bool = False) -> None:
        """Suspend the job: its pods get SIGTERM, save, and go; the objects stay."""
        for text in jobs:
            job = JobName.parse(text)
            patch: Any = True
            for key in reversed(job.flavour.suspend):
                patch = {key: patch}
            _call(*job.command("patch", f"{job.resource}/{job.name}", "--type=merge", "-p", json.dumps(patch)))

    def log_command(self, jobs: Sequence[str], *, follow: bool) -> list[str]:
        """Return the command that prints the log of rank 0 and its agent."""
        job = JobName.parse(jobs[-1])
        labels = job.flavour.first_pod.format(name=job.name)
        return job.command("logs", "--selector", labels, "--tail=-1", *(["--follow"] if follow else []))


def judge_job(shown: Mapping[str, Any], flavour: Flavour, *, words: str) -> JobView:
    """Return how a job is doing that the API server described.

    Args:
        shown: The object.
        flavour: What kind of job it is.
        words: Its name, for people.
    """
    status = shown.get("status") or {}
    true = {item["type"]: item for item in status.get("conditions") or () if item.get("status") == "True"}
    for kind, outcome in flavour.ended.items():
        if kind in true:
            why = ": ".join(part for part in (true[kind].get("reason"), true[kind].get("message")) if part)
            known = cast(Literal["succeeded", "failed"], outcome)
            return JobView(phase="ended", words=f"{words} is {kind}" + (f" ({why})" if why else ""), outcome=known)
    suspended: Any = shown
    for key in flavour.suspend:
        suspended = (suspended or {}).get(key)
    if suspended:
        return JobView(phase="ended", words=f"{words} is suspended", outcome="stopped")
    active = any(
        counts.get("active") or counts.get("ready")
        for counts in [
            *(status.get("replicatedJobsStatus") or ()),
            *(status.get("jobsStatus") or ()),
            *(status.get("replicaStatuses") or {}).values(),
        ]
    )
    return JobView(phase="running" if active else "waiting", words=f"{words} is {'running' if active else 'waiting'}")


def object_name(run: str) -> str:
    """Return the name of a run's objects: lower case, digits and ``-``, a letter first, 40 characters at most.

    >>> object_name("tiny-20261124T135326Z-e37e")
    'tiny-20261124t135326z-e37e'
    >>> object_name("7b.Lora_" + "x" * 60)
    'r-7b-lora-xxxxxxxxxxxxxxxxxxxxx-ef6f31ff'
    """
    name = re.sub(r"[^a-z0-9-]", "-", run.lower()).strip("-")
    if not name[:1].isalpha():
        name = f"r-{name}".rstrip("-")
    if len(name) <= _NAME_CHARACTERS:
        return name
    digest = hashlib.sha256(run.encode()).hexdigest()[:8]
    return f"{name[: _NAME_CHARACTERS - 9].rstrip('-')}-{digest}"


def _forwarded_map(job: JobName, variables: Mapping[str, str]) -> dict[str, Any]:
    for name, value in variables.items():
        kind = secret_kind(value)
        if kind is not None:
            raise LaunchError(f"{name} of this shell looks like {kind} and would be readable in a ConfigMap; unset it")
    found: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{job.name}-forwarded"},
        "data": dict(variables),
    }
    namespace = dict(job.options).get("namespace")
    if namespace is not None:
        found["metadata"]["namespace"] = namespace
    return found
