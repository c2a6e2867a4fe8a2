"""How long collectives and pipeline transfers take: volume over the slowest link, and latency for each step."""

from __future__ import annotations

from dataclasses import dataclass

from llama_scale.plan.constants import Constants
from llama_scale.plan.workload import Workload

_GIGA, _MICRO, _BITS = 1e9, 1e-6, 8

_INSIDE_HOP = 0.25
"""Latency of a ring's step within a node over one across the network: 3.4 over 14 us in NCCL's own model (NVLink and
network, ring, simple protocol: github.com/NVIDIA/nccl src/graph/tuning.cc, hwLat)."""

_UNKNOWN_LINK_GB = 25.0
"""PCIe 4 x16, one direction, less protocol: what devices without NVLink have."""

_UNKNOWN_NETWORK_GBIT = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """The links of a machine as a group of ranks sees them.

    Args:
        node: Devices of a scale-up domain.
        link: Bytes a second of a device within the domain, one direction.
        network: Bytes a second of a device's share of the network, one direction.
        constants: The model's constants.
    """

    node: int
    link: float
    network: float
    constants: Constants

    def gather_seconds(self, size: float, *, members: int, stride: int, messages: float = 1.0) -> float:
        """Return the time to gather (or reduce and scatter) ``size`` bytes over a group.

        Args:
            size: Bytes of the whole tensor.
            members: Ranks of the group.
            stride: Ranks between neighbours of the group: tensor parallel ranks are 1 apart.
            messages: Collectives that the tensor is sent in.
        """
        if members == 1:
            return 0.0
        inside = max(1, min(members, self.node // stride))
        volume = size * (members - 1) / members
        if inside >= members:
            return volume / self.link + messages * self.constants.collective_us * _MICRO
        # Each node's part of the ring leaves through all its devices' adapters, shared by the groups side by side.
        bandwidth = min(self.link, self.network * inside)
        nodes = members / inside
        steps = nodes * (1 + _INSIDE_HOP * (inside - 1))
        return volume / bandwidth + messages * (self.constants.collective_us + self.constants.hop_us * steps) * _MICRO

    def send_seconds(self, size: float, *, stride: int, devices: int) -> float:
        """Return the time of one transfer between neighbours ``stride`` ranks apart, of ``devices`` in all."""
        inside = devices <= self.node or stride < self.node
        bandwidth = self.link if inside else self.network
        return size / bandwidth + self.constants.collective_us * _MICRO


def make_fabric(workload: Workload, *, constants: Constants) -> Fabric:
    """Return the links of a run's machine."""
    hardware = workload.hardware
    link = (hardware.link_gb_per_s or _UNKNOWN_LINK_GB) * _GIGA * constants.link
    network = (hardware.network_gbit_per_s or _UNKNOWN_NETWORK_GBIT) * _GIGA / _BITS * constants.network
    return Fabric(node=max(1, workload.devices_per_node), link=link, network=network, constants=constants)
