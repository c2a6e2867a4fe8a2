"""What a step costs in model FLOPs and what the devices could do: the two sides of MFU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llama_scale.plan import hardware
from llama_scale.plan.flops import model_flops_per_token

if TYPE_CHECKING:
    from llama_scale.plan.run_plan import RunPlan
    from llama_scale.spec.run import RunSpec


def flops_per_step(plan: RunPlan) -> float:
    """Return the model FLOPs of one optimizer step: forward and backward, nothing counted twice for recomputation."""
    return model_flops_per_token(plan.shape, plan.batch.seq_length, frozen=plan.frozen) * plan.batch.tokens_per_step


def peak_flops(spec: RunSpec, plan: RunPlan) -> float | None:
    """Return the FLOPs per second of all the run's devices at their peak, or None where it is not known.

    CPUs have no known peak: it depends on clocks and on who else runs.
    """
    if spec.cluster.device != "cuda" or spec.precision.compute != "bf16":
        return None
    peak = hardware.peak_flops(torch.cuda.get_device_name(), "bf16")
    return None if peak is None else peak * plan.topology.world_size
