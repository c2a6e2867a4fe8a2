"""Section ``launcher``, ``kind: ssh``: one ssh connection a host, and an agent at its end."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llama_scale.spec.base import PathStr, Section
from llama_scale.spec.launcher_fields import (
    Forwarded,
    Grace,
    HostName,
    MasterPort,
    SshPort,
    SshTimeout,
    Threads,
    Variables,
)


class SshLauncher(Section):
    """Hosts reached by plain ssh without a password; all see the run folder under the same path."""

    kind: Literal["ssh"]
    hosts: tuple[HostName, ...] = Field((), description="Hosts, cluster.nodes of them; rank 0 is on the first.")
    hostfile: PathStr | None = Field(None, description="DeepSpeed's hostfile (lines NAME slots=N), instead of hosts.")
    master_port: MasterPort = None
    ssh_port: SshPort = None
    ssh_timeout_s: SshTimeout = 20.0
    lease_s: Annotated[float, Field(ge=5, le=3600, allow_inf_nan=False)] = Field(
        30.0,
        description="A host that is not heard for so long is lost; its ranks save when they have not heard the head "
        "for two thirds of it, and have ended at its end.",
    )
    threads_per_process: Threads = None
    grace_s: Grace = 60.0
    env: Variables = Field({})
    forward: Forwarded = ()
