"""The seam between a run and the system that starts its processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llama_scale.errors import LaunchError
from llama_scale.extensions import discover
from llama_scale.plan.run_plan import RunPlan
from llama_scale.spec.run import RunSpec
from llama_scale.spec.secret import secret_kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Everything that is executed for a run, as text.

    The same spec gives the same bytes, whatever the time, the run folder's name and the machine's state.

    Args:
        files: File name -> content; always holds ``spec.yaml`` and ``plan.json``.
    """

    files: Mapping[str, str]

    def __post_init__(self) -> None:
        """Refuse what looks like a secret: a bundle is copied into run folders, and shown.

        Raises:
            LaunchError: A file holds such a value; the value itself is not shown.
        """
        for name, text in self.files.items():
            kind = secret_kind(text)
            if kind is not None:
                raise LaunchError(
                    f"{name} of the bundle holds what looks like {kind}, and bundles are no place for secrets: name "
                    "the variable in launcher.forward (or launcher.secrets), and replace the secret, which may be known"
                )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over names and contents."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode("ascii")).hexdigest()


class Job(Protocol):
    """Processes that ``submit`` has started."""

    @property
    def pid(self) -> int:
        """Process id of the agent; it leads a session and a process group of its own."""
        ...

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        ...


class Launcher(Protocol):
    """One way to start the processes of a run."""

    def render(self, spec: RunSpec, plan: RunPlan, *, python: str) -> Bundle:
        """Return the bundle; pure.

        Args:
            spec: Resolved spec.
            plan: Its plan.
            python: Absolute path of the interpreter that runs the workers.
        """
        ...

    def submit(self, run: Path, *, bundle: Path, environment: Mapping[str, str], log: Path) -> Job:
        """Start exactly this bundle for this run folder.

        Args:
            run: The run folder.
            bundle: Folder that holds the bundle's files.
            environment: Whole environment that the bundle's own variables are added to.
            log: File that the agent's output is appended to.

        Raises:
            LaunchError: It could not be started.
        """
        ...


def load_launcher(kind: str) -> Launcher:
    """Return the launcher of a spec's ``launcher.kind``.

    Raises:
        PluginError: There is none, or it is broken.
    """
    launcher: Launcher = discover.implementation(discover.launcher(kind))()
    return launcher
