"""Run a command with a terminal of its own, of a known width, whatever the tests themselves write to."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence


def run_in_terminal(
    command: Sequence[str], *, env: Mapping[str, str], columns: int = 200, timeout_s: float = 120.0
) -> tuple[int, bytes]:
    """Return a command's exit status and what it showed, stdout and stderr together.

    Raises:
        AssertionError: It did not end in time; it was killed.
    """
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        process = subprocess.Popen(command, env={**env, "TERM": "xterm"}, stdout=theirs, stderr=theirs)
    finally:
        os.close(theirs)
    shown = b""
    deadline = time.monotonic() + timeout_s
    try:
        # Read while it runs: a terminal that nobody reads takes 4 KB and then lets the writer wait.
        while part := _read(ours, deadline):
            shown += part
        return process.wait(max(1.0, deadline - time.monotonic())), shown
    except (TimeoutError, subprocess.TimeoutExpired):
        raise AssertionError(f"{command} did not end within {timeout_s} s; it showed {shown!r}") from None
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read(terminal: int, deadline: float) -> bytes:
    if not select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
        raise TimeoutError
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # EIO: the command has ended, and nothing else has its end of the terminal open
        return b""
