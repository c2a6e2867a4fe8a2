"""Section ``cluster``: the machines. World size is always derived: nodes x devices_per_node."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llama_scale.spec.base import Name, PathStr, PositiveInt, Section


class Cluster(Section):
    """The machines of the run."""

    nodes: PositiveInt = Field(1, description="Number of hosts.")
    devices_per_node: PositiveInt = Field(1, description="GPUs, or CPU processes, of one host.")
    device: Literal["cuda", "cpu"] = Field("cuda", description="cuda with NCCL, or cpu with gloo.")
    profile: Name | None = Field(
        None,
        description="Site profile under launch/profiles: GPU type, network, environment (laptop, dgx-h100, ...).",
    )
    profile_file: PathStr | None = Field(
        None, description="A profile of your own, a YAML file like those under launch/profiles, instead of profile."
    )

    @property
    def site(self) -> str | None:
        """Name of the profile, or of the user's own file, for people; None without one."""
        return self.profile_file.rpartition("/")[2] if self.profile_file is not None else self.profile

    @property
    def world_size(self) -> int:
        """Processes the cluster runs: one a device."""
        return self.nodes * self.devices_per_node
