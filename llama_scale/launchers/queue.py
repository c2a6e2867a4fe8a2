"""The seam to schedulers: systems that keep jobs of their own, which outlive the machine that launches."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from llama_scale.errors import LaunchError
from llama_scale.spec.run import RunSpec

JobPhase = Literal["waiting", "running", "ended", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """What a scheduler says of a run's jobs.

    Args:
        phase: Where they stand together: running if one runs, else waiting if one waits. ``unknown``: the scheduler
            cannot be asked, from here or now.
        words: The scheduler's own words, for people.
        outcome: How they ended, of schedulers that say so reliably; empty leaves it to the run folder.
    """

    phase: JobPhase
    words: str
    outcome: Literal["", "succeeded", "failed", "stopped"] = ""


class Queue(Protocol):
    """A scheduler. A launcher that has one carries it as ``queue``.

    Attributes:
        cancel_saves: Cancelling is how a run is stopped: its ranks save first, and they do not see the run folder of
            the machine that launches.
    """

    cancel_saves: bool

    def submit(self, run: Path, *, bundle: Path, spec: RunSpec, environment: Mapping[str, str]) -> tuple[str, ...]:
        """Queue exactly this bundle for this run folder; return the jobs' names.

        Args:
            run: The run folder.
            bundle: Folder that holds the bundle's files.
            spec: The bundle's spec.
            environment: Environment of the shell that launches; the job gets what the bundle's ``forward`` names.

        Raises:
            LaunchError: The scheduler refuses it; nothing is then queued.
        """
        ...

    def look(self, jobs: Sequence[str]) -> JobView:
        """Return how the jobs are doing."""
        ...

    def cancel(self, jobs: Sequence[str], *, waiting_only: bool = False) -> None:
        """Take jobs out of the queue.

        Args:
            jobs: Their names.
            waiting_only: Leave those alone that run.

        Raises:
            LaunchError: The scheduler cannot be asked.
        """
        ...


def queue_of(launcher: object) -> Queue | None:
    """Return a launcher's queue; None for one that starts processes itself."""
    queue: Queue | None = getattr(launcher, "queue", None)
    return queue


def call(
    program: str,
    *words: str,
    absent: str,
    timeout_s: float,
    text: str = "",
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a scheduler's program to its end and return what it prints.

    Args:
        program: Its name.
        words: Its arguments.
        absent: What to say where it is not installed.
        timeout_s: Time to answer in.
        text: Its standard input.
        environment: All of its environment; None: this process's.
        folder: Where it runs; None: here.

    Raises:
        LaunchError: It is not installed, does not answer or refuses.
    """
    path = shutil.which(program)
    if path is None:
        raise LaunchError(f"{program} is not installed here: {absent}")
    try:
        done = subprocess.run(
            [path, *words],
            check=False,
            cwd=folder,
            env=None if environment is None else dict(environment),
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{program} did not answer within {timeout_s:g} s") from error
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split()) or f"status {done.returncode}"
        raise LaunchError(f"{program} refused: {said}")
    return done.stdout
