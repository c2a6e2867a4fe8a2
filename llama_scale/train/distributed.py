"""Process groups of a run: torch.distributed and Megatron-Core's parallel state, from a plan's topology."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from llama_scale.errors import LaunchError
from llama_scale.train import cpu
from llama_scale.train.versions import parallel_state

if TYPE_CHECKING:
    from llama_scale.plan.topology import Coordinates, Topology


def device_of(kind: str) -> torch.device:
    """Return this rank's device: the CPU, or the CUDA device of ``LOCAL_RANK``."""
    if kind == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def initialize(topology: Topology, *, device: str, timeout_s: float, virtual_stages: int = 1) -> Coordinates:
    """Join the run: rank, world size and rendezvous come from torchrun's environment variables.

    Args:
        topology: Degrees of parallelism; its world size equals ``WORLD_SIZE``.
        device: ``cpu`` (gloo) or ``cuda`` (NCCL).
        timeout_s: A collective that takes longer fails.
        virtual_stages: Model chunks per pipeline stage.

    Returns:
        Coordinates of this rank.

    Raises:
        LaunchError: ``WORLD_SIZE`` differs from the topology's, or the CUDA device does not exist.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != topology.world_size:
        raise LaunchError(
            f"WORLD_SIZE={world}, but the plan is for {topology.world_size} processes; start one process a rank, "
            "e.g. with `llama-scale launch`"
        )
    cpu.adapt()
    # Megatron-Core 0.16 under torch 2.13, once per call site and rank.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    target = device_of(device)
    if target.type == "cuda":
        if not torch.cuda.is_available() or target.index >= torch.cuda.device_count():
            raise LaunchError(
                f"LOCAL_RANK={target.index} needs a CUDA device, but {torch.cuda.device_count()} can be used here; "
                "set cluster.device: cpu, or cluster.devices_per_node to the number of GPUs"
            )
        torch.cuda.set_device(target)
    if not dist.is_initialized():
        backend = "nccl" if target.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=topology.tp_size,
        pipeline_model_parallel_size=topology.pp_size,
        virtual_pipeline_model_parallel_size=virtual_stages if virtual_stages > 1 else None,
        distributed_timeout_minutes=timeout_s / 60,  # goes into timedelta(minutes=), so a fraction is exact
    )
    return topology.coordinates(dist.get_rank())


def shutdown() -> None:
    """Destroy all process groups; idempotent."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
