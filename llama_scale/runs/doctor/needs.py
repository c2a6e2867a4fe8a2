"""What a run needs of its hosts; pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

from llama_scale.extensions import discover
from llama_scale.plan.fit import stage_needs
from llama_scale.plan.run_plan import RunPlan
from llama_scale.runs.doctor.records import Needs
from llama_scale.spec.run import RunSpec


def needs_of(spec: RunSpec, plan: RunPlan) -> Needs:
    """Return what a run needs; hosts that a scheduler will choose are not known, so this machine stands for them."""
    launcher = spec.launcher
    hosts: tuple[str, ...] = getattr(launcher, "hosts", ())
    here = spec.cluster.nodes == 1 and launcher.kind in ("local", "mpi", "deepspeed")
    notes = tuple(_weights(spec))
    if not hosts and spec.cluster.nodes > 1:
        notes += (f"the {launcher.kind} launcher chooses the hosts: this machine alone is examined",)
    memory = max(need.total for need in stage_needs(spec, plan)) * spec.cluster.devices_per_node
    return Needs(
        hosts=hosts,
        devices=spec.cluster.devices_per_node,
        device=spec.cluster.device,
        ssh_port=getattr(launcher, "ssh_port", None),
        port=getattr(launcher, "master_port", None) or 0,
        files=(*(_token_files(spec) if hosts or here else ()), *(_files_of_one_host(spec) if here else ())),
        disk_bytes=checkpoint_bytes(spec, plan) * (spec.checkpoint.keep_last + 1 + spec.checkpoint.keep_best),
        memory_bytes=memory if spec.cluster.device == "cpu" and (hosts or spec.cluster.nodes == 1) else 0.0,
        world=spec.cluster.world_size,
        bases=spec.model.init_from is not None,
        notes=notes,
    )


def _weights(spec: RunSpec) -> Iterator[str]:
    """Say what a run starts from, where that is not simply the seed."""
    what = "frozen base" if spec.adapters else "weights"
    if spec.model.init_from is not None:
        yield f"{what}: {spec.model.base_name or spec.model.init_from}"
    elif spec.adapters:
        yield f"{what}: drawn from seed {spec.seed}"


def checkpoint_bytes(spec: RunSpec, plan: RunPlan) -> float:
    """Return the bytes of one checkpoint: weights, and the optimizer's fp32 copies and two moments of what trains."""
    bf16 = spec.precision.compute == "bf16"
    per_weight = 2 if bf16 else 4
    per_trained = (12 if bf16 else 8) if spec.checkpoint.save_optimizer else 0
    trained = sum(math.prod(parameter.shape) for parameter in plan.all_parameters() if plan.trains(parameter))
    return float(trained * (per_weight + per_trained))


def _token_files(spec: RunSpec) -> Iterator[str]:
    blend = getattr(spec.data, "blend", ())
    yield from (f"{part.path}{ending}" for part in blend for ending in (".idx", ".bin"))


def _files_of_one_host(spec: RunSpec) -> Iterator[str]:
    """Yield what only one rank reads: a task's examples, which it prepares for all, and the tokenizer."""
    if spec.tokenizer is not None:
        path = spec.tokenizer.path
        yield path if spec.tokenizer.kind == "sentencepiece" else f"{path}/tokenizer.json"
    for task in spec.tasks:
        descriptor = discover.task(task.kind)
        yield from descriptor.files(discover.read_options(descriptor, task.options))
