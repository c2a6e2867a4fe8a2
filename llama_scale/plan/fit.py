"""Whether a plan fits into the devices of its site."""

from __future__ import annotations

from dataclasses import dataclass

from llama_scale.errors import Problem
from llama_scale.plan.constants import DEFAULT, Constants
from llama_scale.plan.hardware import device_bytes
from llama_scale.plan.run_plan import RunPlan
from llama_scale.spec.profiles import site_profile
from llama_scale.spec.run import RunSpec

_GIB = float(1 << 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageNeed:
    """Bytes that one rank of a stage needs on its device.

    Args:
        pp_rank: The stage.
        tensors: Bytes of tensors at the peak of a step.
        slack: What the allocator holds on top of them.
        context: CUDA context, libraries, communicators.
    """

    pp_rank: int
    tensors: float
    slack: float
    context: float

    @property
    def total(self) -> float:
        """All bytes."""
        return self.tensors + self.slack + self.context


def stage_needs(spec: RunSpec, plan: RunPlan, *, constants: Constants = DEFAULT) -> tuple[StageNeed, ...]:
    """Return what each stage needs; processes on CPUs have neither CUDA context nor caching allocator."""
    cuda = spec.cluster.device == "cuda"
    return tuple(
        StageNeed(
            pp_rank=memory.pp_rank,
            tensors=memory.total,
            slack=constants.fragmentation * memory.total if cuda else 0.0,
            context=constants.context_gb * 1e9 if cuda else 0.0,
        )
        for memory in plan.memory
    )


def capacity_bytes(spec: RunSpec) -> float | None:
    """Return the memory of one device of the spec's site, None where no profile names it."""
    profile = site_profile(spec.cluster)
    return None if profile is None else device_bytes(profile.memory_gb)


def problems(spec: RunSpec, plan: RunPlan, *, constants: Constants = DEFAULT) -> list[Problem]:
    """Return one problem for the stage that overflows its device most; none if all fit or the site is not known.

    Args:
        spec: The resolved spec.
        plan: Its plan.
        constants: The model's constants.
    """
    capacity = capacity_bytes(spec)
    if capacity is None:
        return []
    need = max(stage_needs(spec, plan, constants=constants), key=lambda stage: stage.total)
    if need.total <= capacity:
        return []
    parts = f"tensors {need.tensors / _GIB:.1f}"
    if need.context:
        parts += f", allocator {need.slack / _GIB:.1f}, CUDA and libraries {need.context / _GIB:.1f}"
    return [
        Problem(
            path=("cluster", "profile"),
            message=f"stage {need.pp_rank} needs {need.total / _GIB:.1f} GiB a device ({parts}), "
            f"{(need.total - capacity) / _GIB:.1f} GiB more than the {capacity / _GIB:.1f} GiB of "
            f"{spec.cluster.site}",
            hint="use more tensor or pipeline ranks, recompute, a smaller batch.micro or a sharded optimizer; "
            "`llama-scale plan SPEC --search` lists layouts that fit",
            code="does-not-fit",
        )
    ]
