"""What a run needs of its hosts; pure."""

from __future__ import annotations

import math

from llama_scale.plan.fit import stage_needs
from llama_scale.plan.run_plan import RunPlan
from llama_scale.runs.doctor.records import Needs
from llama_scale.spec.run import RunSpec


def needs_of(spec: RunSpec, plan: RunPlan) -> Needs:
    """Return what a run needs; hosts that a scheduler will choose are not known, so this machine stands for them."""
    launcher = spec.launcher
    hosts: tuple[str, ...] = getattr(launcher, "hosts", ())
    here = spec.cluster.nodes == 1 and launcher.kind in ("local", "mpi", "deepspeed")
    notes: tuple[str, ...] = ()
    if not hosts and spec.cluster.nodes > 1:
        notes = (f"the {launcher.kind} launcher chooses the hosts: this machine alone is examined",)
    memory = max(need.total for need in stage_needs(spec, plan)) * spec.cluster.devices_per_node
    return Needs(
        hosts=hosts,
        devices=spec.cluster.devices_per_node,
        device=spec.cluster.device,
        ssh_port=getattr(launcher, "ssh_port", None),
        port=getattr(launcher, "master_port", None) or 0,
        files=_data_files(spec) if hosts or here else (),
        disk_bytes=checkpoint_bytes(spec, plan) * (spec.checkpoint.keep_last + 1 + spec.checkpoint.keep_best),
        memory_bytes=memory if spec.cluster.device == "cpu" and (hosts or spec.cluster.nodes == 1) else 0.0,
        world=spec.cluster.world_size,
        notes=notes,
    )


def checkpoint_bytes(spec: RunSpec, plan: RunPlan) -> float:
    """Return the bytes of one checkpoint: weights, and the optimizer's fp32 copies and two moments of what trains."""
    bf16 = spec.precision.compute == "bf16"
    per_weight = 2 if bf16 else 4
    per_trained = (12 if bf16 else 8) if spec.checkpoint.save_optimizer else 0
    trained = sum(math.prod(parameter.shape) for parameter in plan.all_parameters() if plan.trains(parameter))
    return float(trained * (per_weight + per_trained))


def _data_files(spec: RunSpec) -> tuple[str, ...]:
    blend = getattr(spec.data, "blend", ())
    return tuple(f"{part.path}{ending}" for part in blend for ending in (".idx", ".bin"))
