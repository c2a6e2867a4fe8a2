"""Section ``cluster``: the machines. World size is always derived: nodes x devices_per_node."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llama_scale.spec.base import Name, PositiveInt, Section


class Cluster(Section):
    """The machines of the run."""

    nodes: PositiveInt = Field(1, description="Number of hosts.")
    devices_per_node: PositiveInt = Field(1, description="GPUs, or CPU processes, of one host.")
    device: Literal["cuda", "cpu"] = Field("cuda", description="cuda with NCCL, or cpu with gloo.")
    profile: Name | None = Field(
        None,
        description="Site profile under launch/profiles: GPU type, network, environment (laptop, dgx-h100, ...).",
    )

    @property
    def world_size(self) -> int:
        """Processes the cluster runs: one a device."""
        return self.nodes * self.devices_per_node
