"""The layouts that tuning chooses from: all that the rules allow and that fit, predicted for the spec's devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_scale.errors import SpecError
from llama_scale.plan.constants import DEFAULT
from llama_scale.plan.hardware import Hardware, scale_up_domain
from llama_scale.plan.search import Ranked, search
from llama_scale.plan.search_space import describe
from llama_scale.spec.run import RunSpec
from llama_scale.tune.machine import CPU_CONSTANTS, cpu_hardware

KEEPABLE = ("parallel", "engine", "recompute", "batch")


def tunable_layouts(spec: RunSpec, *, hardware: Hardware | None, keep: Sequence[str] = ()) -> tuple[Ranked, ...]:
    """Return the layouts that fit, best predicted first.

    Args:
        spec: The resolved spec.
        hardware: The accelerator; None where processes run on this machine's cores.
        keep: Sections that stay as the spec has them.

    Raises:
        SpecError: the spec is for an accelerator that is not known, or no layout fits.
    """
    devices = spec.cluster.world_size
    on_cpu = spec.cluster.device == "cpu"
    if hardware is None and not on_cpu:
        raise SpecError(
            "tuning needs to know the accelerator: give --gpu (h100, ...), --hardware FILE or cluster.profile"
        )
    if on_cpu or hardware is None:
        hardware = cpu_hardware(devices)
    node = scale_up_domain(hardware, devices=devices, devices_per_node=spec.cluster.devices_per_node)
    constants = CPU_CONSTANTS if on_cpu else DEFAULT
    result = search(spec, hardware=hardware, devices=devices, devices_per_node=node, constants=constants)
    own = _own_sections(spec)
    fitting = tuple(
        one
        for one in result.ranked[: result.fitting]
        if _kept(describe(one.candidate), own, keep) and not _runs_as_another(one)
    )
    if not fitting:
        which = f" that keeps {', '.join(keep)}" if keep else ""
        raise SpecError(
            f"none of {len(result.ranked)} layouts{which} fits {devices} x {hardware.name}; nothing to tune"
        )
    return fitting


def _runs_as_another(one: Ranked) -> bool:
    """Tell whether a layout is run as another one is: DeepSpeed's pipeline has ZeRO-1 for ZeRO-0."""
    engine, parallel = one.candidate.engine, one.candidate.parallel
    return bool(engine.kind == "deepspeed" and engine.zero == 0 and parallel.pipeline > 1)


def _own_sections(spec: RunSpec) -> dict[str, dict[str, Any]]:
    plain = spec.model_dump(mode="json", by_alias=True)
    return {name: plain[name] for name in KEEPABLE}


def _kept(sections: Mapping[str, Any], own: Mapping[str, Any], keep: Sequence[str]) -> bool:
    """Tell whether a layout has the spec's values in the kept sections: those fields that tell layouts apart."""
    for name in keep:
        fields = _TOLD_APART.get(name, tuple(sections[name]))
        if any(own[name].get(field) != sections[name].get(field) for field in fields):
            return False
    return True


_TOLD_APART = {"batch": ("micro",), "engine": ("kind", "zero", "distributed_optimizer")}
"""A search chooses an engine's overlaps by itself, and accumulation follows from the degrees."""
