"""A little room that a run sets aside on its disk, so that it can still say that the disk is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

_BYTES = 256 << 10
_FULL = (errno.ENOSPC, errno.EDQUOT)


def set_aside(run: Path) -> None:
    """Take the room, in the file ``reserve`` of a run folder; without it a full disk is told in fewer words."""
    path = run / "reserve"
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _BYTES)
    except OSError:
        path.unlink(missing_ok=True)


def give_back(run: Path) -> None:
    """Give the room up: the run has ended."""
    (run / "reserve").unlink(missing_ok=True)


def write_report(run: Path, write: Callable[[], None]) -> None:
    """Call ``write``; if the disk is full, give the room up and call it once more.

    Raises:
        OSError: It failed all the same.
    """
    try:
        write()
    except OSError as error:
        if error.errno not in _FULL or not (run / "reserve").exists():
            raise
        give_back(run)
        write()
