"""Start a supervisor for a run folder whose lock the caller holds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import UTC, datetime

from llama_scale.errors import LaunchError
from llama_scale.runs.atomic import write_atomically
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.lock import RunLock
from llama_scale.runs.records import State, Status


def start_supervisor(run: RunFolder, *, lock: RunLock) -> subprocess.Popen[bytes]:
    """Start the supervisor in a session of its own and hand it the lock; the caller's copy is closed.

    Raises:
        LaunchError: It could not be started.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    # -P: nothing in the folder that llama-scale was called from may be imported by accident.
    command = [sys.executable, "-P", "-m", "llama_scale.runs.supervisor", str(run.path), "--lock-fd", str(lock.fd)]
    try:
        run.logs.mkdir(exist_ok=True)
        # The lock makes this process the owner of status.json until the supervisor has it: nobody must take the end
        # of an earlier attempt for that of this one.
        run.stop.unlink(missing_ok=True)
        write_atomically(run.status, new_status(state="starting", message="starting").model_dump_json(indent=2))
        with run.supervisor_log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(lock.fd,),
                start_new_session=True,
            )
    except OSError as error:
        raise LaunchError(f"cannot start the supervisor of {run.path}: {error.strerror or error}") from error
    finally:
        lock.release()


def new_status(*, state: State, message: str, exit_code: int | None = None) -> Status:
    """Return a status of this process as supervisor."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Status(
        state=state,
        supervisor_pid=os.getpid(),
        supervisor_host=socket.gethostname(),
        message=message,
        exit_code=exit_code,
        started_utc=now,
        updated_utc=now,
    )
