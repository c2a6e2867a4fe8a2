"""Gradients and sharded weights between data parallel ranks: how much goes, and what compute cannot hide."""

from __future__ import annotations

from llama_scale.plan.communication import Fabric
from llama_scale.plan.workload import Workload
from llama_scale.plan.workload_sizes import layer_numel, rank_numel

_BUCKET_BYTES = 160e6
"""Gradients go in buckets of 40 million fp32 numbers (Megatron-Core's default)."""

_TENSORS_OF_A_LAYER = 12

_ADAPTER_BYTES = 4
"""Adapters stay in fp32."""

_EDGE = 1.0
"""Layers whose traffic nothing can hide: the last to compute gradients, the first to wait for weights."""


def exposed_seconds(
    workload: Workload,
    fabric: Fabric,
    *,
    forward: float,
    backward: float,
    layers: int,
    trunk_layers: int = 0,
    trunk: float = 0.0,
) -> float:
    """Return the data parallel traffic of a step that compute does not hide.

    Args:
        workload: The run.
        fabric: Its links.
        forward: Seconds of one layer's forward pass, one micro-batch.
        backward: Seconds of its backward pass.
        layers: Layers of the stage that backward passes go through.
        trunk_layers: Layers of the stage below all adapters.
        trunk: Seconds of one such layer's pass.
    """
    if workload.parallel.dp * workload.parallel.cp == 1:
        return 0.0
    if workload.parallel.sharding in ("zero3", "hsdp"):
        return _sharded_weights(
            workload, fabric, forward=forward, backward=backward, layers=layers, trunk_layers=trunk_layers, trunk=trunk
        )
    grads, weights = _once(workload, fabric)
    software, overlap = workload.software, fabric.constants.overlap
    # Gradients are final in the last micro-batch's backward pass, weights are waited for in the first forward pass.
    # With interleaving, groups of pp micro-batches pass chunk after chunk: the last group hides all but one chunk's.
    parallel = workload.parallel
    passes = 1.0
    if parallel.vp > 1:
        passes = min(parallel.pp, workload.micro_batches) * (parallel.vp - 1) / parallel.vp
    hidden = overlap * passes * backward * layers if software.overlap_grads else 0.0
    exposed = max(grads * _EDGE / max(1, layers), grads - hidden)
    if software.reduce_each_pass:
        exposed *= workload.micro_batches
    hidden = overlap * passes * forward * layers if software.overlap_params else 0.0
    return exposed + max(weights * _EDGE / max(1, layers), weights - hidden)


def _once(workload: Workload, fabric: Fabric) -> tuple[float, float]:
    """Return the seconds of reducing gradients and of gathering weights, once a step."""
    parallel = workload.parallel
    members, stride = parallel.dp * parallel.cp, parallel.tp
    numel = rank_numel(workload)
    if not numel:
        return 0.0, 0.0
    element = workload.element_bytes if workload.frozen is None else _ADAPTER_BYTES
    grads, weights = numel * workload.software.reduce_bytes, numel * element
    messages = max(1.0, grads / _BUCKET_BYTES)

    def gather(size: float, *, over: int, step: int) -> float:
        return fabric.gather_seconds(size, members=over, stride=step, messages=messages)

    if parallel.sharding == "none":
        return 2 * gather(grads, over=members, step=stride), 0.0
    if parallel.sharding == "zero1-node":
        inside = max(1, min(members, fabric.node // stride))
        across = members // inside
        reduce = gather(grads, over=inside, step=stride)
        reduce += 2 * gather(grads / inside, over=across, step=stride * inside)
        return reduce, gather(weights, over=inside, step=stride)
    return gather(grads, over=members, step=stride), gather(weights, over=members, step=stride)


def _sharded_weights(
    workload: Workload,
    fabric: Fabric,
    *,
    forward: float,
    backward: float,
    layers: int,
    trunk_layers: int,
    trunk: float,
) -> float:
    """Return the exposed traffic of ZeRO-3: every pass gathers each layer's weights, every backward scatters."""
    parallel, software = workload.parallel, workload.software
    members, stride = parallel.dp * parallel.cp, parallel.tp
    messages = 1.0 if software.flat_gather else float(_TENSORS_OF_A_LAYER)
    numel = updated = layer_numel(workload)
    if workload.frozen is not None:
        updated = max(workload.frozen.layer_numel, default=0)
    inside = members
    if parallel.sharding == "hsdp":
        inside = max(1, min(members, fabric.node // stride))
    size = numel * workload.element_bytes
    grads = updated * software.reduce_bytes
    gather = fabric.gather_seconds(size, members=inside, stride=stride, messages=messages)
    scatter = fabric.gather_seconds(grads, members=inside, stride=stride, messages=messages)
    across = members // inside
    if across > 1:
        scatter += 2 * fabric.gather_seconds(grads / inside, members=across, stride=stride * inside)
    overlap = fabric.constants.overlap if software.overlap_params else 0.0
    exposed = max(0.0, gather - overlap * forward) + max(0.0, gather + scatter - overlap * backward)
    # The first gather of a pass and the last scatter have nothing to hide under.
    edges = 2 * gather + scatter
    if trunk_layers:
        exposed_trunk = max(0.0, gather - overlap * trunk)
        edges = edges if layers else gather
        return workload.micro_batches * (layers * exposed + trunk_layers * exposed_trunk + edges)
    return workload.micro_batches * (layers * exposed + edges)
