"""How fast a planned run is: step time by part, tokens a second, utilisation, days and cost."""

from __future__ import annotations

from dataclasses import dataclass

from llama_scale.plan.constants import DEFAULT, Constants
from llama_scale.plan.flops import model_flops_per_token, recomputed_flops_per_token
from llama_scale.plan.hardware import Hardware
from llama_scale.plan.run_plan import RunPlan
from llama_scale.plan.spec_workload import spec_workload
from llama_scale.plan.step_time import StepTime, step_time
from llama_scale.spec.run import RunSpec

CONVENTION = "full"
"""How attention is counted in MFU and HFU: all s x s pairs, as PaLM (arXiv:2204.02311, appendix B)."""

_TERA = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run is predicted to need.

    Args:
        hardware: Name of the accelerator.
        step: Seconds of a step by part.
        tokens_per_s: Tokens a second of the whole run.
        tokens_per_s_per_device: Tokens a second of one device.
        mfu: Model FLOPs over the device's peak in the run's format.
        hfu: The same with recomputed FLOPs.
        convention: How MFU and HFU count attention.
        days: Days for the run's tokens.
        device_hours: Hours of all devices together.
        usd: Price of these, None where no price is known.
    """

    hardware: str
    step: StepTime
    tokens_per_s: float
    tokens_per_s_per_device: float
    mfu: float
    hfu: float
    convention: str
    days: float
    device_hours: float
    usd: float | None


def estimate(
    spec: RunSpec,
    plan: RunPlan,
    *,
    hardware: Hardware,
    usd_per_hour: float | None = None,
    constants: Constants = DEFAULT,
) -> Estimate:
    """Predict a resolved spec's run on this hardware.

    Args:
        spec: The spec.
        plan: Its plan.
        hardware: The accelerator.
        usd_per_hour: Price of one device for an hour; None: the hardware's own, if it has one.
        constants: The model's constants.
    """
    workload = spec_workload(spec, hardware=hardware)
    step = step_time(workload, constants=constants)
    devices = plan.topology.world_size
    speed = plan.batch.tokens_per_step / step.total
    model = model_flops_per_token(plan.shape, plan.batch.seq_length, frozen=workload.frozen)
    again = recomputed_flops_per_token(
        plan.shape, plan.batch.seq_length, stages=plan.stages, recompute=spec.recompute, frozen=workload.frozen
    )
    peak = hardware.bf16_tflops * _TERA * devices
    seconds = step.total * plan.steps
    hours = seconds / 3600 * devices
    price = usd_per_hour if usd_per_hour is not None else hardware.usd_per_hour
    return Estimate(
        hardware=hardware.name,
        step=step,
        tokens_per_s=speed,
        tokens_per_s_per_device=speed / devices,
        mfu=model * speed / peak,
        hfu=(model + again) * speed / peak,
        convention=CONVENTION,
        days=seconds / 86400,
        device_hours=hours,
        usd=None if price is None else hours * price,
    )
