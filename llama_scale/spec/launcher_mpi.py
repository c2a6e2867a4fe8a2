"""Section ``launcher``, ``kind: mpi``: mpirun starts one agent a host."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llama_scale.spec.base import PathStr, Section
from llama_scale.spec.launcher_fields import Forwarded, Grace, HostName, MasterPort, Threads, Variables

Argument = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]


class MpiLauncher(Section):
    """OpenMPI's mpirun, which starts one agent a host; the agent forks the host's ranks."""

    kind: Literal["mpi"]
    command: Annotated[str, Field(pattern=r"^(?:mpirun|mpiexec|/[^\x00-\x1f\x7f]+)$")] = Field(
        "mpirun", description="mpirun or mpiexec of OpenMPI, or its absolute path."
    )
    hosts: tuple[HostName, ...] = Field(
        (),
        description="Hosts, cluster.nodes of them; none: this machine, or those of the allocation that launch is in.",
    )
    hostfile: PathStr | None = Field(None, description="File of lines NAME slots=N, instead of hosts.")
    master_port: MasterPort = None
    arguments: tuple[Argument, ...] = Field(
        (), description="More arguments of mpirun, e.g. [--mca, oob_tcp_if_include, 10.0.0.0/24]."
    )
    threads_per_process: Threads = None
    grace_s: Grace = 60.0
    env: Variables = Field({})
    forward: Forwarded = ()
