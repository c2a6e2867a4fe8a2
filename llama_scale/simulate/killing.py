"""Kill one rank of a run, really, once it has something to resume from."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TypeVar

import psutil

from llama_scale.checkpoint.manifest import newest_complete
from llama_scale.errors import LaunchError
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.lock import is_running
from llama_scale.runs.progress import last_step
from llama_scale.runs.records import ENDED
from llama_scale.runs.view import GONE, RunView, look

_POLL_S = 0.002
"""Steps of a tiny model take a few hundredths of a second."""
_START_S = 180.0
_END_S = 120.0

T = TypeVar("T")


class TooFastError(LaunchError):
    """Report a run that ended well before it could be killed."""


def kill_rank(run: RunFolder, rank: int) -> int:
    """Wait until a run has a complete checkpoint and has gone on from there; then kill a rank.

    Args:
        run: A run that was started.
        rank: Which rank.

    Returns:
        The step it had done.

    Raises:
        TooFastError: The run ended well before.
        LaunchError: It failed before, or nothing came of it.
    """
    ranks: list[psutil.Process] = []

    def ready() -> int:
        nonlocal ranks
        if len(ranks) <= rank:
            ranks = _ranks(run)
        newest, line = newest_complete(run.checkpoints), last_step(run.metrics)
        saved = int(newest.name.removeprefix("step-")) if newest else 0
        if saved and line and line.step > saved and len(ranks) > rank:
            return line.step
        if not is_running(run) and (view := look(run)).state in (*ENDED, GONE):
            if view.state == "succeeded":
                raise TooFastError(f"{run.path} had ended before a rank could be killed")
            raise LaunchError(view.message)
        return 0

    step = _wait(ready, seconds=_START_S, doing=f"a checkpoint of {run.path}")
    try:
        os.kill(ranks[rank].pid, signal.SIGKILL)
    except ProcessLookupError:
        raise TooFastError(f"{run.path} had ended before a rank could be killed") from None
    return step


def _ranks(run: RunFolder) -> list[psutil.Process]:
    """Return the processes of a local run's ranks, in the order in which their agent forked them."""
    status = look(run).status
    if status is None or status.agent_pid is None:
        return []
    try:
        return sorted(psutil.Process(status.agent_pid).children(), key=lambda process: process.pid)
    except psutil.NoSuchProcess:
        return []


def wait_for_end(run: RunFolder) -> RunView:
    """Wait until a run has ended, and return how.

    Raises:
        LaunchError: It has not.
    """

    def ended() -> RunView | None:
        view = look(run)
        return view if view.state in (*ENDED, GONE) else None

    return _wait(ended, seconds=_END_S, doing=f"the end of {run.path}", poll_s=0.05)


def end(run: RunFolder) -> None:
    """Ask a run's supervisor to stop it, if it still runs, and wait for its end."""
    view = look(run)
    if not is_running(run) or view.status is None:
        return
    try:
        os.kill(view.status.supervisor_pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    wait_for_end(run)


def _wait(condition: Callable[[], T | None], *, seconds: float, doing: str, poll_s: float = _POLL_S) -> T:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise LaunchError(f"waited {seconds:g} s for {doing}")
        time.sleep(poll_s)
    return value
