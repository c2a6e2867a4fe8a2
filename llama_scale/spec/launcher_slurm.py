"""Section ``launcher``, ``kind: slurm``: a batch job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llama_scale.spec.base import PositiveInt, Section
from llama_scale.spec.launcher_fields import AbsolutePath, Forwarded, Grace, Threads, Variables

SLURM_NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.,@+-]{0,127}$"
SlurmName = Annotated[str, Field(pattern=SLURM_NAME_PATTERN)]
"""Name of a partition, an account or a quality of service; several are joined by commas."""
TIME_PATTERN = r"^(?:\d{1,4}-)?\d{1,4}(?::[0-5]?\d){0,2}$"
OPTION_PATTERN = r"^[^\x00-\x1f\x7f\x22\x5c]*$"
"""Value of an option: one line without ``"`` and ``\\``, which would change the quoted word of an #SBATCH line."""
Option = Annotated[str, Field(pattern=OPTION_PATTERN)]
MOUNT_PATTERN = r"^/[^\x00-\x1f\x7f,:]*(?::/[^\x00-\x1f\x7f,:]*(?::(?:ro|rw))?)?$"
Mount = Annotated[str, Field(pattern=MOUNT_PATTERN)]
"""``/SOURCE``, ``/SOURCE:/TARGET`` or ``/SOURCE:/TARGET:ro``; ``:`` and ``,`` separate and are in no path."""

IMAGE_FILE_PATTERN = r"^[^\s\x00-\x1f\x7f-][^\x00-\x1f\x7f]*$"


class Container(Section):
    """The image that the ranks run in; the batch script itself runs outside of it."""

    kind: Literal["pyxis", "apptainer"] = Field(description="pyxis (srun --container-image, enroot) or apptainer exec.")
    image: Annotated[str, Field(pattern=IMAGE_FILE_PATTERN)] = Field(
        description="Image: a registry's name, or the path of a .sqsh or .sif file."
    )
    python: AbsolutePath = Field("/usr/bin/python3", description="Interpreter inside the image that has llama-scale.")
    mounts: tuple[Mount, ...] = Field(
        (), description="SOURCE[:TARGET[:ro]] of folders to show inside; the run folder always is, at its own path."
    )


class SlurmLauncher(Section):
    """A Slurm batch job; what is queued goes on when this machine or the shell has gone."""

    kind: Literal["slurm"]
    partition: SlurmName | None = Field(None, description="Partition; default: the site's.")
    account: SlurmName | None = Field(None, description="Account that is charged.")
    qos: SlurmName | None = Field(None, description="Quality of service.")
    time: Annotated[str, Field(pattern=TIME_PATTERN)] | None = Field(
        None, description="Time limit of a job: minutes, HH:MM:SS or D-HH[:MM:SS]; default: the partition's."
    )
    gres: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:,=/-]*$")] | None = Field(
        None,
        description="Generic resources of a node; default with device: cuda: gpu:<devices_per_node>; '' asks none.",
    )
    cpus_per_node: PositiveInt | None = Field(None, description="CPUs of a node; default: Slurm's for one task.")
    exclusive: bool = Field(False, description="Take whole nodes.")
    options: dict[str, Option] = Field({}, description="More options of sbatch, e.g. {constraint: h100, mem: '0'}.")
    requeue: bool = Field(True, description="Queue again, and go on, after a preemption, a lost node or a time limit.")
    chain: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="Jobs queued one after another, for a run that is longer than the time limit."
    )
    container: Container | None = Field(None, description="Image to run in.")
    threads_per_process: Threads = None
    grace_s: Grace = 60.0
    env: Variables = Field({})
    forward: Forwarded = ()
