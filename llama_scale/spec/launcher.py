"""Section ``launcher``: how processes are started."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llama_scale.spec.base import PathStr, PositiveFloat, PositiveInt, Section
from llama_scale.spec.hostfile import HOST_PATTERN

HostName = Annotated[str, Field(pattern=HOST_PATTERN)]
"""A host's name or IPv4 address: nothing in it means anything to a shell, to ssh or to pdsh."""
Port = Annotated[int, Field(ge=1024, le=65535)]


Threads = Annotated[
    PositiveInt | None, Field(description="OMP threads of a process; default: cores / processes, at least 1.")
]
Grace = Annotated[PositiveFloat, Field(description="Seconds a stopping run gets to save its checkpoint.")]
Variables = Annotated[
    dict[str, str], Field(description="Environment variables for the workers. No secrets: name them only.")
]


class LocalLauncher(Section):
    """Processes on this machine."""

    kind: Literal["local"]
    threads_per_process: Threads = None
    grace_s: Grace = 60.0
    env: Variables = Field({})


class DeepSpeedLauncher(Section):
    """The `deepspeed` command: on this machine, or on several hosts through pdsh and ssh."""

    kind: Literal["deepspeed"]
    hosts: tuple[HostName, ...] = Field(
        (), description="Hosts, cluster.nodes of them; none: this machine, without ssh."
    )
    hostfile: PathStr | None = Field(None, description="DeepSpeed's hostfile (lines NAME slots=N), instead of hosts.")
    master_port: Port | None = Field(
        None, description="Port of the rendezvous on the first host; default: one of 20000-29999, by run and attempt."
    )
    ssh_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None, description="Port of sshd; default: ssh's own."
    )
    ssh_timeout_s: PositiveFloat = Field(
        20.0, description="Seconds in which every host has to answer before the run is started."
    )
    threads_per_process: Threads = None
    grace_s: Grace = 60.0
    env: Variables = Field({})


Launcher = Annotated[LocalLauncher | DeepSpeedLauncher, Field(discriminator="kind")]
