"""Memory of a run's fullest rank, in the metric in which people report it."""

from __future__ import annotations

from dataclasses import dataclass

from llama_scale.plan.activations import LOGITS_BLOCK_ELEMENTS
from llama_scale.plan.constants import DEFAULT, Constants
from llama_scale.plan.hardware import device_bytes
from llama_scale.plan.workload import Workload
from llama_scale.plan.workload_sizes import layer_numel, stage_numel, trained_layers, trained_numel
from llama_scale.plan.zero_buffers import ZeroCase, bucket_bytes, gathered_elements

_GB, _GIB = 1e9, float(1 << 30)

_KEPT_OPERATIONS = 0.4
"""Share of a layer's activations that keeping every other matrix product and the attention output leaves."""

_ADAPTER_BYTES = 4

_GATHERED_LAYERS = 2
"""Layers whose weights ZeRO-3 holds whole at once: the one at work and the one that is fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMemory:
    """Bytes of the fullest rank of a run.

    Args:
        stage: Its pipeline stage.
        weights: Weights in the format of the computation, their own share under ZeRO-3.
        gradients: Accumulated gradients.
        optimizer: Master copies and moments.
        activations: Stored activations at the peak of a step.
        logits: Logits and loss.
        buffers: Communication buckets and gathered weights.
        slack: What the allocator holds on top.
        context: CUDA context and libraries.
        capacity: Bytes of the device.
    """

    stage: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    slack: float
    context: float
    capacity: float

    @property
    def allocated(self) -> float:
        """Bytes of tensors."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.buffers

    @property
    def reserved(self) -> float:
        """Bytes that the allocator took from the device."""
        return self.allocated + self.slack

    @property
    def used(self) -> float:
        """Bytes that nvidia-smi shows."""
        return self.reserved + self.context

    @property
    def fits(self) -> bool:
        """Whether the device has that much."""
        return self.used <= self.capacity

    def in_metric(self, metric: str) -> float:
        """Return the peak as a source with this metric prints it: smi, reserved or allocated; GB, or GiB if named."""
        size = _GIB if "gib" in metric.lower() else _GB
        if "smi" in metric:
            return self.used / size
        return (self.allocated if "alloc" in metric else self.reserved) / size


def run_memory(workload: Workload, *, constants: Constants = DEFAULT) -> RunMemory:
    """Predict the memory of the fullest rank."""
    return max(
        (stage_run_memory(workload, stage, constants=constants) for stage in _fullest_stages(workload)),
        key=lambda memory: memory.used,
    )


def _fullest_stages(workload: Workload) -> list[int]:
    """Return the stages of which one is the fullest: both ends, and inner ones with more layers than all before.

    An earlier stage holds more micro-batches, so only more layers can make a later one fuller.
    """
    pp = workload.parallel.pp
    if workload.frozen is not None:
        return list(range(pp))  # adapters may begin anywhere
    found, most = [0], 0
    for stage, layers in enumerate(trained_layers(workload)[1:-1], start=1):
        if layers > most:
            found.append(stage)
            most = layers
    return found if pp == 1 else [*found, pp - 1]


def stage_run_memory(workload: Workload, stage: int, *, constants: Constants = DEFAULT) -> RunMemory:
    """Predict the memory of one rank of a stage."""
    weights, gradients, optimizer, buffers = _states(workload, stage)
    activations = 0.0
    if layers := trained_layers(workload)[stage]:
        activations = _activations(workload, stage, layers) + _working_bytes(workload)
    logits = _logits(workload) if stage == workload.parallel.pp - 1 else 0.0
    return RunMemory(
        stage=stage,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        buffers=buffers,
        slack=constants.fragmentation * (weights + gradients + optimizer + activations + logits + buffers),
        context=constants.context_gb * _GB,
        capacity=device_bytes(workload.hardware.memory_gb),
    )


def _states(workload: Workload, stage: int) -> tuple[float, float, float, float]:
    """Return bytes of weights, gradients, optimizer state and buffers (Rajbhandari et al. 2020, section 3)."""
    parallel, frozen = workload.parallel, workload.frozen is not None
    size, software = workload.element_bytes, workload.software
    replicas = parallel.dp * parallel.cp
    inside = max(1, min(replicas, workload.devices_per_node // parallel.tp))
    shards = {"none": 1, "zero1-node": inside, "hsdp": inside}.get(parallel.sharding, replicas)
    numel, held = trained_numel(workload, stage), stage_numel(workload, stage)
    # Adapters are fp32 weights without a second copy; only ZeRO updates a copy of its own.
    state = software.optimizer_bytes - (4 if (size == 4 or frozen) and software.buckets is None else 0)
    optimizer = float(state) * numel / shards
    weights, gradients, buffers = float(size) * held, float(software.gradient_bytes) * numel, 0.0
    if frozen:
        weights += _ADAPTER_BYTES * numel
    if parallel.sharding in ("zero2", "zero3", "hsdp"):
        gradients /= shards
    if parallel.sharding in ("zero3", "hsdp"):
        # The masters are the sharded weights; layers exist in 16 bits while they are gathered.
        weights = weights / shards if frozen or software.buckets else 0.0
        buffers = _gathered_bytes(workload, stage)
    if software.buckets is not None:
        zero = {"none": 0, "zero2": 2, "zero3": 3}.get(parallel.sharding, 1)
        made = _ADAPTER_BYTES if frozen else size
        case = ZeroCase(stage=zero, dp_size=replicas, trained=int(numel), weight_bytes=made,
                        gradient_bytes=software.gradient_bytes)  # fmt: skip
        buffers += bucket_bytes(software.buckets, case)
    return weights, gradients, optimizer, buffers


def _gathered_bytes(workload: Workload, stage: int) -> float:
    """Return the bytes of weights that a rank of ZeRO-3 holds whole, and of the gradients of the layer at work."""
    layer, software = layer_numel(workload), workload.software
    if software.buckets is None:
        gradients = 0 if workload.frozen is not None else layer * software.gradient_bytes
        return layer * _GATHERED_LAYERS * workload.element_bytes + gradients
    whole = workload.model.vocab * workload.model.hidden // workload.parallel.tp
    held = int(stage_numel(workload, stage))
    return float(workload.element_bytes * gathered_elements(held=held, layer=int(layer), whole=whole))


def _layer_bytes(workload: Workload) -> tuple[float, float]:
    """Return what one layer keeps of one micro-batch, and of that what the attention core keeps.

    Korthikanti et al. 2022, arXiv:2205.05198, section 4, for any head width, GQA and gated MLPs.
    """
    model, parallel, software = workload.model, workload.parallel, workload.software
    tokens, size, tp = workload.tokens, workload.element_bytes, parallel.tp
    stream = tokens * model.hidden / (tp if parallel.sequence else 1)
    heads = tokens * (model.queries + model.keys_values) / tp
    queries = tokens * model.queries / tp
    inner = tokens * (model.active_mlp_width if model.experts else model.ffn) / tp
    kept = 4 * stream * size  # inputs of both norms and of the GEMMs behind them
    kept += heads * size + queries * size  # q, k, v and the projection's input
    kept += (3 if model.gated else 2) * inner * size
    if software.output_copy:
        kept += queries * size
    if software.dropout:
        kept += 2 * stream
    if not software.fused and not software.selective_operations:  # those recompute element-wise results anyway
        kept += 2 * 4 * stream + 2 * heads * size + inner * size  # fp32 norms, rotated copies, silu's output
    if workload.frozen is not None:  # frozen matrices keep no inputs of their own
        shards = tp if parallel.sequence else 1
        kept += tokens * workload.frozen.kept_bytes(element_bytes=size, sequence_shards=shards)
        kept -= (2 * stream + queries + inner) * size
    core: float = 4.0 * tokens * model.heads / tp
    if software.attention.startswith("unfused"):
        scores = float(tokens) * workload.seq_length * model.heads / tp
        core = scores * ((2 * size + 1) if software.attention == "unfused" else (4 * size + 1))
    return kept + core, core


def _working_bytes(workload: Workload) -> float:
    """Return what the backward pass of one layer holds for a moment: gradients of the MLP and of the stream."""
    model, parallel = workload.model, workload.parallel
    inner = model.mlp_matrices * model.active_mlp_width / parallel.tp
    return float(workload.copies * workload.tokens) * (inner + 2 * model.hidden) * workload.element_bytes


def _activations(workload: Workload, stage: int, layers: int) -> float:
    parallel = workload.parallel
    layer, core = _layer_bytes(workload)
    boundary: float = workload.tokens * workload.model.hidden * workload.element_bytes
    boundary = boundary / (parallel.tp if parallel.sequence else 1)
    again = 0.0
    kept = layer
    if parallel.recompute == "selective" and workload.software.selective_operations:
        kept = boundary + (layer - boundary) * _KEPT_OPERATIONS
        again = layer - kept
    elif parallel.recompute == "selective":
        kept, again = layer - core, core
    elif parallel.recompute == "full":
        share = parallel.recompute_layers
        kept = share * boundary + (1 - share) * layer
        again = max(0.0, layer - boundary)
    return workload.copies * (_in_flight(workload, stage) * layers * kept + again)


def _in_flight(workload: Workload, stage: int) -> float:
    """Return the micro-batches that a stage holds: pp - stage, and more with interleaving (section 4.2.3)."""
    parallel, micro = workload.parallel, workload.micro_batches
    if parallel.vp == 1:
        return float(min(micro, parallel.pp - stage))
    warmup = (parallel.pp - stage - 1) * 2 + (parallel.vp - 1) * parallel.pp + 1
    return min(float(micro), warmup / parallel.vp)


def _logits(workload: Workload) -> float:
    software = workload.software
    vocab = workload.model.vocab / (workload.parallel.tp if software.parallel_loss else 1)
    logits = workload.copies * workload.tokens * vocab
    if software.chunked_loss:
        logits = min(logits, float(LOGITS_BLOCK_ELEMENTS))
    return logits * software.logits_bytes
