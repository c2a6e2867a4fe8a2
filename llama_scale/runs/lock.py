"""One supervisor a run folder: an flock that the kernel drops when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass

from llama_scale.errors import LaunchError
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.records import Status, load_record


@dataclass(frozen=True, slots=True)
class RunLock:
    """Hold the lock of a run folder through an open file; it can be handed to a child process with the file."""

    fd: int

    @classmethod
    def acquire(cls, run: RunFolder, *, patience_s: float = 1.0) -> RunLock:
        """Take the lock.

        Args:
            run: The run folder.
            patience_s: How long to try: `is_running` holds a shared lock for a moment.

        Raises:
            LaunchError: Another supervisor holds it, or the folder cannot be written.
        """
        try:
            fd = os.open(run.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LaunchError(
                f"cannot write {run.lock}: {error.strerror}; a run needs a folder that can be written"
            ) from error
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(fd)
                    raise LaunchError(_running_message(run)) from None
                time.sleep(0.05)
            else:
                return cls(fd)

    def release(self) -> None:
        """Close this process's copy; the lock lasts while a child holds another."""
        os.close(self.fd)


def is_running(run: RunFolder) -> bool:
    """Tell whether a supervisor (or a command that is about to start one) holds the run folder."""
    try:
        fd = os.open(run.lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _running_message(run: RunFolder) -> str:
    status = load_record(run.status, Status)
    who = f" (supervisor {status.supervisor_pid} on {status.supervisor_host})" if status else ""
    return (
        f"{run.path} is running already{who}, and a run folder has one supervisor; follow it with "
        f"`llama-scale logs {run.name} -f`, or end it first with `llama-scale stop {run.name}`"
    )
