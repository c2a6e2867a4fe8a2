"""Time of one training step, by part: compute of the slowest stage, bubble, and the traffic that nothing hides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import log2

from llama_scale.plan.communication import Fabric, make_fabric
from llama_scale.plan.constants import DEFAULT, Constants
from llama_scale.plan.data_traffic import exposed_seconds
from llama_scale.plan.kernels import Device, make_device
from llama_scale.plan.layer_time import LayerTime, embedding_time, head_time, layer_time, trunk_time
from llama_scale.plan.workload import Workload
from llama_scale.plan.workload_sizes import rank_numel, stage_counts, trained_layers

_OPTIMIZER_BYTES = 38.0
"""Bytes moved for each parameter: AdamW reads gradient, both moments and the master copy, writes three of them and the
weight; the gradient is read once more for its norm and zeroed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one step on its slowest stage, by part; they add up to the step.

    Args:
        gemm: Matrix products of layers.
        attention: Attention cores.
        pointwise: Norms and element-wise kernels.
        launch: Gaps between kernels and waiting for the host.
        head: Output layer, loss and embedding.
        recompute: Forward passes done again.
        tensor: Exposed tensor, context and expert parallel traffic.
        transfers: Exposed sends between stages.
        bubble: Waiting for other stages.
        data: Exposed traffic of gradients and sharded weights.
        optimizer: The update.
        straggling: Waiting for the slowest of many nodes.
    """

    gemm: float
    attention: float
    pointwise: float
    launch: float
    head: float
    recompute: float
    tensor: float
    transfers: float
    bubble: float
    data: float
    optimizer: float
    straggling: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTimes:
    """Seconds of what one micro-batch passes through.

    Args:
        layer: A layer that a backward pass goes through.
        trunk: A layer below all adapters, of a frozen base.
        head: Output layer and loss, forward and backward.
        embedding: Embedding, forward and backward.
    """

    layer: LayerTime
    trunk: LayerTime | None
    head: tuple[float, float]
    embedding: tuple[float, float]


LayerTimer = Callable[[Workload], PassTimes]


def step_time(workload: Workload, *, constants: Constants = DEFAULT, timer: LayerTimer | None = None) -> StepTime:
    """Predict a step.

    Args:
        workload: The run.
        constants: The model's constants.
        timer: Gives the times of layer, head and embedding; a search passes one that remembers them.
    """
    fabric = make_fabric(workload, constants=constants)
    if timer is None:
        device = make_device(workload.hardware, precision=workload.precision, constants=constants)
        timer = make_timer(device, fabric)
    times = timer(workload)
    layer, trunk = times.layer, times.trunk
    parallel = workload.parallel
    again = _recomputed(layer, workload)
    counts = stage_counts(workload.model.layers, parallel)
    trained = trained_layers(workload)
    frozen = [sum(counts[stage :: parallel.pp]) - trained[stage] for stage in range(parallel.pp)]
    below = trunk.forward if trunk is not None else 0.0
    busy = [trained[stage] * (layer.forward + layer.backward + again) + frozen[stage] * below
            for stage in range(parallel.pp)]  # fmt: skip
    busy[0] += sum(times.embedding)
    busy[-1] += sum(times.head)
    micro = workload.micro_batches
    transfers = _transfers(workload, fabric, micro=micro)
    nodes = max(1.0, parallel.devices / max(1, workload.devices_per_node))
    straggler = constants.straggler * log2(nodes)
    data = _data(workload, fabric, times=times, again=again, stages=list(zip(trained, frozen, strict=True)))
    slow = _slowest(busy, data, workload=workload, straggler=straggler)
    bubble = (sum(busy) - busy[slow]) / parallel.vp
    ends = (sum(times.embedding) if slow == 0 else 0.0) + (sum(times.head) if slow == parallel.pp - 1 else 0.0)

    def spent(part: str) -> float:
        seconds: float = trained[slow] * sum(getattr(layer, part))
        if trunk is not None:
            seconds += frozen[slow] * sum(getattr(trunk, part))
        return micro * seconds

    return StepTime(
        gemm=spent("gemm"),
        attention=spent("attention"),
        pointwise=spent("pointwise"),
        launch=spent("launch"),
        head=micro * ends,
        recompute=micro * trained[slow] * again,
        tensor=spent("tensor"),
        transfers=transfers,
        bubble=bubble,
        data=data[slow],
        optimizer=_optimizer(workload, constants=constants),
        straggling=straggler * (busy[slow] * micro + transfers + bubble),
    )


def _data(
    workload: Workload, fabric: Fabric, *, times: PassTimes, again: float, stages: list[tuple[int, int]]
) -> list[float]:
    """Return the exposed data parallel traffic of each stage, of so many layers that train and others below them."""
    layer, trunk = times.layer, times.trunk
    exposed = {
        (layers, below): exposed_seconds(
            workload, fabric, forward=layer.forward, backward=layer.backward + again, layers=layers,
            trunk_layers=below, trunk=0.0 if trunk is None else trunk.forward,
        )
        for layers, below in set(stages)
    }  # fmt: skip
    return [exposed[stage] for stage in stages]


def _slowest(busy: list[float], data: list[float], *, workload: Workload, straggler: float) -> int:
    """Return the stage that the update waits for.

    It need not be the one that computes longest: a stage with fewer layers can hide less traffic under them. The time
    of a stage is its computing, its bubble ``(sum(busy) - busy[stage]) / vp`` and its exposed traffic; terms that are
    equal for all stages are left out here.
    """
    weight = (1 + straggler) * (workload.micro_batches - 1 / workload.parallel.vp)
    by_computing = sorted(range(len(busy)), key=lambda stage: -busy[stage])  # of equals, the first counts
    return max(by_computing, key=lambda stage: weight * busy[stage] + data[stage])


def make_timer(device: Device, fabric: Fabric) -> LayerTimer:
    """Return a function that times what a workload's micro-batch passes through."""

    def timer(workload: Workload) -> PassTimes:
        below = workload.frozen is not None and workload.frozen.first_layer > 0
        return PassTimes(
            layer=layer_time(workload, device=device, fabric=fabric),
            trunk=trunk_time(workload, device=device, fabric=fabric) if below else None,
            head=head_time(workload, device=device),
            embedding=embedding_time(workload, device=device),
        )

    return timer


def tokens_per_second(workload: Workload, step: StepTime) -> float:
    """Return the tokens that one device trains on in a second."""
    samples = workload.micro_batches * workload.micro_batch * workload.parallel.dp
    return samples * workload.seq_length / step.total / workload.parallel.devices


def _recomputed(layer: LayerTime, workload: Workload) -> float:
    kind = workload.parallel.recompute
    if kind == "none":
        return 0.0
    if kind == "selective":
        if workload.software.selective_operations:
            return layer.gemm[0] / 2 + layer.pointwise[0]
        return layer.attention[0]
    return layer.forward * workload.parallel.recompute_layers


def _transfers(workload: Workload, fabric: Fabric, *, micro: int) -> float:
    parallel = workload.parallel
    if parallel.pp == 1:
        return 0.0
    size = workload.tokens * workload.model.hidden * workload.element_bytes
    if parallel.sequence or workload.software.scatter_p2p:
        size = size // parallel.tp
    stride = parallel.tp * parallel.cp * parallel.dp
    one = fabric.send_seconds(size, stride=stride, devices=parallel.devices)
    filling = 2 * (parallel.pp - 1) * one
    if workload.software.overlap_p2p and parallel.vp > 1:
        return filling
    return filling + 2 * micro * parallel.vp * one


def _optimizer(workload: Workload, *, constants: Constants) -> float:
    parallel = workload.parallel
    shards = {
        "none": 1,
        "zero1-node": max(1, min(parallel.dp, workload.devices_per_node // parallel.tp)),
        "hsdp": max(1, min(parallel.dp, workload.devices_per_node // parallel.tp)),
    }.get(parallel.sharding, parallel.dp * parallel.cp)
    moved = _OPTIMIZER_BYTES * rank_numel(workload) / shards
    return moved / (workload.hardware.memory_tb_per_s * 1e12 * constants.memory)
