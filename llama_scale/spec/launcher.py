"""Section ``launcher``: how processes are started."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llama_scale.spec.base import PathStr, Section
from llama_scale.spec.launcher_fields import Grace, HostName, MasterPort, SshPort, SshTimeout, Threads, Variables
from llama_scale.spec.launcher_kubernetes import KubernetesLauncher
from llama_scale.spec.launcher_mpi import MpiLauncher
from llama_scale.spec.launcher_slurm import SlurmLauncher
from llama_scale.spec.launcher_ssh import SshLauncher


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
    master_port: MasterPort = None
    ssh_port: SshPort = None
    ssh_timeout_s: SshTimeout = 20.0
    threads_per_process: Threads = None
    grace_s: Grace = 60.0
    env: Variables = Field({})


Launcher = Annotated[
    LocalLauncher | SshLauncher | DeepSpeedLauncher | SlurmLauncher | MpiLauncher | KubernetesLauncher,
    Field(discriminator="kind"),
]
