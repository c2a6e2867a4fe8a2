"""Keep what a process prints into a file below a size: a run of months must not fill the disk that it saves to."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import sys
from pathlib import Path

MOST_BYTES = 32 << 20
"""Size of a log at which it begins anew. What was in it is kept once, so that a log takes twice as much at most."""


class LogLimit:
    """Set the log aside when it has grown too large; call it now and then.

    Only a regular file that is written by appending is touched: for others that write to it, too, it is then as if it
    had just been made. What they print between the copy and the cut is lost.

    Args:
        most_bytes: Size at which it is set aside.
        fd: What this process prints into.
    """

    def __init__(self, *, most_bytes: int = MOST_BYTES, fd: int = 1) -> None:
        self._most, self._fd = most_bytes, fd

    def __call__(self) -> None:
        """Look at the log; a fault is said and never ends training."""
        try:
            status = os.fstat(self._fd)
            if status.st_size <= self._most or not stat.S_ISREG(status.st_mode):
                return
            if not fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_APPEND:
                return
            path = Path(f"/proc/self/fd/{self._fd}").readlink()
            shutil.copyfile(path, path.with_name(f"{path.name}.old"))
            os.ftruncate(self._fd, 0)
        except OSError as error:
            sys.stderr.write(f"cannot set the log aside: {error}\n")
