"""Section ``launcher``: how processes are started."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llama_scale.spec.base import PositiveFloat, PositiveInt, Section


class LocalLauncher(Section):
    """Processes on this machine."""

    kind: Literal["local"]
    threads_per_process: PositiveInt | None = Field(
        None, description="OMP threads of a process; default: cores / processes, at least 1."
    )
    grace_s: PositiveFloat = Field(60.0, description="Seconds a stopping run gets to save its checkpoint.")
    env: dict[str, str] = Field({}, description="Environment variables for the workers. No secrets: name them only.")


Launcher = LocalLauncher
