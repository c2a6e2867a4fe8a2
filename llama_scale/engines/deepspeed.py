"""The settings that DeepSpeed is given: typed here, computed from spec and plan, written as ``ds_config.json``.

DeepSpeed ignores misspelt keys at the top level, so none is typed by hand: a test gives every emitted file to
DeepSpeed's own config classes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from llama_scale.plan.run_plan import RunPlan
from llama_scale.spec.engine import DeepSpeedEngine, Offload
from llama_scale.spec.run import RunSpec

_NEVER = 2**31 - 1


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OffloadSettings(_Settings):
    """Where state lives that is not on the device."""

    device: Literal["cpu", "nvme"]
    nvme_path: str | None = None
    pin_memory: bool = False


class ZeroSettings(_Settings):
    """Section ``zero_optimization``."""

    stage: int
    overlap_comm: bool
    contiguous_gradients: bool = True
    reduce_bucket_size: int
    allgather_bucket_size: int
    stage3_param_persistence_threshold: int
    offload_optimizer: OffloadSettings | None = None
    offload_param: OffloadSettings | None = None


class Bf16Settings(_Settings):
    """Section ``bf16``."""

    enabled: bool
    check_grad_overflow: bool = True
    """Leave out an update that is not finite, as fp32 training does."""


class DataTypeSettings(_Settings):
    """Section ``data_types``."""

    grad_accum_dtype: Literal["fp32", "bf16"]


class DeepSpeedSettings(_Settings):
    """All that this package sets; everything else is DeepSpeed's default."""

    train_batch_size: int
    train_micro_batch_size_per_gpu: int
    gradient_accumulation_steps: int
    gradient_clipping: float
    steps_per_print: int = _NEVER
    wall_clock_breakdown: bool = False
    zero_optimization: ZeroSettings
    zero_force_ds_cpu_optimizer: bool = False
    bf16: Bf16Settings
    data_types: DataTypeSettings
    communication_data_type: Literal["fp32", "bf16"]


def zero_stage(spec: RunSpec) -> int:
    """Return the ZeRO stage that runs: DeepSpeed's pipeline engine clips wrongly without ZeRO, so 0 becomes 1 there.

    Without ZeRO its clipping counts only the first stage's gradients (runtime/utils.py, clip_grad_norm_), and says
    nothing. ZeRO 1 keeps the same numbers, in less memory.
    """
    engine = _engine(spec)
    return 1 if engine.zero == 0 and spec.parallel.pipeline > 1 else engine.zero


def deepspeed_settings(spec: RunSpec, plan: RunPlan) -> DeepSpeedSettings:
    """Compute DeepSpeed's settings for a run whose engine is deepspeed."""
    engine = _engine(spec)
    stage = zero_stage(spec)
    # Adapters are fp32 over a frozen base of any format, which DeepSpeed then need not know of.
    gradients: Literal["fp32", "bf16"] = spec.precision.gradients if plan.base_trainable else "fp32"
    return DeepSpeedSettings(
        train_batch_size=plan.batch.global_batch,
        train_micro_batch_size_per_gpu=plan.batch.micro_batch,
        gradient_accumulation_steps=plan.batch.accumulation,
        # Without ZeRO the engine clips by itself, for DeepSpeed reports no norm there.
        gradient_clipping=spec.optimizer.clip_grad_norm if stage else 0.0,
        zero_optimization=ZeroSettings(
            stage=stage,
            overlap_comm=engine.overlap_comm,
            reduce_bucket_size=engine.bucket_elements,
            allgather_bucket_size=engine.bucket_elements,
            stage3_param_persistence_threshold=engine.persistence_elements,
            offload_optimizer=_offload(engine.offload_optimizer),
            offload_param=_offload(engine.offload_parameters),
        ),
        bf16=Bf16Settings(enabled=spec.precision.compute == "bf16" and plan.base_trainable),
        data_types=DataTypeSettings(grad_accum_dtype=gradients),
        communication_data_type=gradients,
    )


def deepspeed_config(spec: RunSpec, plan: RunPlan) -> dict[str, Any]:
    """Return the settings as the dict that ``deepspeed.initialize`` takes."""
    return deepspeed_settings(spec, plan).model_dump(mode="json", exclude_none=True)


def _engine(spec: RunSpec) -> DeepSpeedEngine:
    assert isinstance(spec.engine, DeepSpeedEngine), "the caller has looked at engine.kind"
    return spec.engine


def _offload(offload: Offload | None) -> OffloadSettings | None:
    if offload is None:
        return None
    return OffloadSettings(device=offload.device, nvme_path=offload.nvme_path, pin_memory=offload.pin_memory)
