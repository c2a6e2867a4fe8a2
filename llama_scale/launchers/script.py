"""Start a bundle's ``launch.sh`` on this machine."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from llama_scale.errors import LaunchError
from llama_scale.launchers.base import Job
from llama_scale.launchers.processes import end_with_parent


def start_script(run: Path, *, bundle: Path, environment: Mapping[str, str], log: Path) -> Job:
    """Run ``bash bundle/launch.sh RUN`` in a session of its own that ends when the caller dies.

    Raises:
        LaunchError: It could not be started.
    """
    try:
        with log.open("ab") as output:
            return subprocess.Popen(
                ["bash", str(bundle / "launch.sh"), str(run)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
                preexec_fn=lambda: end_with_parent(signal.SIGTERM),  # noqa: PLW1509 - the caller has one thread
            )
    except OSError as error:
        raise LaunchError(f"cannot start {bundle / 'launch.sh'}: {error.strerror or error}") from error
