"""Sessions of processes on this machine: tie them to their parent, find them, end them all."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def end_with_parent(number: int) -> None:
    """Ask the kernel to send this process a signal when its parent dies, and unblock all signals.

    Meant for the time between fork and exec; the request survives an exec (prctl(2), PR_SET_PDEATHSIG).
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent dies, so that they can be waited for."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def list_marked(marker: str) -> list[int]:
    """Return the ids of living processes that were started with this line in their environment.

    Args:
        marker: ``NAME=value``.
    """
    wanted = os.fsencode(marker)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0") and is_alive(int(entry.name)):
                found.append(int(entry.name))
        except OSError:  # gone meanwhile, or another user's
            continue
    return sorted(found)


def list_session(session: int) -> list[int]:
    """Return the ids of living processes of one session."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getsid(int(entry.name)) == session and is_alive(int(entry.name)):
                found.append(int(entry.name))
        except OSError:
            continue
    return sorted(found)


def is_alive(pid: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in {"Z", "X"}


def kill_all(pids: list[int], *, timeout_s: float = 10.0) -> list[int]:
    """Send SIGKILL to processes and wait until they are gone (zombies are); return those that are not."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue
    deadline = time.monotonic() + timeout_s
    left = list(pids)
    while left:
        left = [pid for pid in left if is_alive(pid)]
        if time.monotonic() > deadline:
            break
        if left:
            time.sleep(0.02)
    return left


def reap_children() -> None:
    """Wait for children that have ended, without blocking. Not while a Popen is still to be polled."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
