"""Section ``engine``: which training system runs the same model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llama_scale.spec.base import PathStr, PositiveInt, Section


class MegatronEngine(Section):
    """Megatron-Core: TP x PP (1F1B, interleaved) x DP with its own DDP and optimizers."""

    kind: Literal["megatron"]
    distributed_optimizer: bool = Field(
        True, description="Divide optimizer state over the data parallel group (ZeRO-1 in other words)."
    )
    overlap_grad_reduce: bool = Field(False, description="Reduce gradients while the backward pass goes on.")
    overlap_param_gather: bool = Field(
        False, description="Gather parameters during the forward pass (needs distributed_optimizer)."
    )
    overlap_p2p: bool = Field(
        False, description="Overlap the pipeline's sends with compute (interleaved schedule only)."
    )


class Offload(Section):
    """Where DeepSpeed keeps state that does not fit on the device."""

    device: Literal["cpu", "nvme"] = Field(description="cpu: host memory; nvme: files on a local disk (CUDA only).")
    nvme_path: PathStr | None = Field(None, description="Folder for device: nvme.")
    pin_memory: bool = Field(False, description="Use page-locked host memory.")


class DeepSpeedEngine(Section):
    """DeepSpeed: ZeRO 0-3 x TP, or its pipeline engine with PP x TP x ZeRO <= 1."""

    kind: Literal["deepspeed"]
    zero: Annotated[int, Field(ge=0, le=3)] = Field(
        1, description="ZeRO stage: 0 none, 1 optimizer state, 2 + gradients, 3 + parameters."
    )
    offload_optimizer: Offload | None = Field(None, description="Keep optimizer state off the device (ZeRO >= 1).")
    offload_parameters: Offload | None = Field(None, description="Keep parameters off the device (ZeRO 3).")
    overlap_comm: bool = Field(False, description="Overlap gradient reduction with the backward pass.")
    bucket_elements: PositiveInt = Field(500_000_000, description="Elements per communication bucket.")
    persistence_elements: Annotated[int, Field(ge=0)] = Field(
        100_000, description="Weights of fewer elements stay whole on every rank (ZeRO 3); 0: all are divided."
    )


class DdpEngine(Section):
    """Plain torch DistributedDataParallel over the single-stage model: the reference."""

    kind: Literal["ddp"]
    bucket_mb: PositiveInt = Field(25, description="Gradient bucket size, MiB.")


Engine = Annotated[MegatronEngine | DeepSpeedEngine | DdpEngine, Field(discriminator="kind")]
