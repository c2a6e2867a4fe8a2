"""Fields that several launchers share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llama_scale.spec.base import PositiveFloat, PositiveInt
from llama_scale.spec.hostfile import HOST_PATTERN

HostName = Annotated[str, Field(pattern=HOST_PATTERN)]
"""A host's name or IPv4 address: nothing in it means anything to a shell, to ssh or to pdsh."""
Port = Annotated[int, Field(ge=1024, le=65535)]
MasterPort = Annotated[
    Port | None,
    Field(description="Port of the rendezvous on the first host; default: one of 20000-29999, by run and attempt."),
]
SshPort = Annotated[
    Annotated[int, Field(ge=1, le=65535)] | None, Field(description="Port of sshd; default: ssh's own.")
]
SshTimeout = Annotated[
    PositiveFloat, Field(description="Seconds in which every host has to answer before the run is started.")
]

VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,254}$"
VariableName = Annotated[str, Field(pattern=VARIABLE_PATTERN)]
ABSOLUTE_PATH_PATTERN = r"^/[^\x00-\x1f\x7f]*$"
AbsolutePath = Annotated[str, Field(pattern=ABSOLUTE_PATH_PATTERN)]
"""A path on another machine or in an image: taken as it is, never from the spec's folder."""

Threads = Annotated[
    PositiveInt | None, Field(description="OMP threads of a process; default: cores / processes, at least 1.")
]
Grace = Annotated[PositiveFloat, Field(description="Seconds a stopping run gets to save its checkpoint.")]
Variables = Annotated[
    dict[str, str], Field(description="Environment variables for the workers. No secrets: name them only.")
]
Forwarded = Annotated[
    tuple[VariableName, ...],
    Field(
        description="Names of variables that workers get from the shell that launches, beside NCCL_*, UCX_*, GLOO_* "
        "and FI_*; for secrets too, whose values are then in no file."
    ),
]
