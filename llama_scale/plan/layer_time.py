"""Time of one transformer layer, and of the output layer, for one micro-batch on one rank."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from llama_scale.plan.communication import Fabric
from llama_scale.plan.kernels import Device, attention_seconds, gemm_seconds
from llama_scale.plan.workload import Frozen, Workload

_MICRO = 1e-6

_KERNELS = 28
"""Kernels of a layer's forward pass with fused norms and activations; as many again for each of the two halves of the
backward pass."""

_EAGER_KERNELS = 16
"""Kernels more in a forward pass whose norms, rotary embedding and activation are not fused."""

_SMOOTH = 4
"""Order of the smooth maximum of device and host time: the host falls behind on small kernels even where it keeps up on
average."""

_QUANTIZE_BYTES = 3.0
"""Casting one GEMM operand to 8 bits: half of the reads are fused into norms; it and its transpose are written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """Seconds of one layer, one micro-batch, by part; forward and backward apart.

    Args:
        gemm: Matrix products.
        attention: The attention core.
        pointwise: Norms and element-wise operations.
        launch: Gaps between kernels, and waiting for the host.
        tensor: Tensor and context parallel traffic that nothing hides.
    """

    gemm: tuple[float, float]
    attention: tuple[float, float]
    pointwise: tuple[float, float]
    launch: tuple[float, float]
    tensor: tuple[float, float]

    @property
    def forward(self) -> float:
        """Seconds of a forward pass."""
        return self.gemm[0] + self.attention[0] + self.pointwise[0] + self.launch[0] + self.tensor[0]

    @property
    def backward(self) -> float:
        """Seconds of a backward pass, nothing recomputed."""
        return self.gemm[1] + self.attention[1] + self.pointwise[1] + self.launch[1] + self.tensor[1]


def layer_time(workload: Workload, *, device: Device, fabric: Fabric) -> LayerTime:
    """Return the time of one layer, of a frozen base's one with the adapters' products and without its own weights'."""
    frozen = workload.frozen
    if workload.copies > 1:
        workload = replace(workload, micro_batch=workload.micro_batch * workload.copies)
    gemm = _gemms(workload, device)
    model, parallel = workload.model, workload.parallel
    attention = attention_seconds(
        tokens=workload.tokens,
        keys=workload.seq_length,
        heads=max(1, model.heads // parallel.tp),
        head_dim=model.head_dim,
        kernel=workload.software.attention,
        device=device,
    )
    pointwise = _pointwise(workload, device)
    forward_kernels, backward_kernels = _KERNELS, 2 * _KERNELS
    if frozen is not None:
        products, bytes_ = _adapters(workload, frozen, device)
        gemm = gemm[0] + products, gemm[1] + 2 * products
        pointwise = pointwise[0] + bytes_, pointwise[1] + bytes_
        more = len(frozen.matrices) // frozen.adapters
        forward_kernels, backward_kernels = _KERNELS + more, _KERNELS + 2 * more
    tensor = _traffic(workload, fabric, gemm=gemm, attention=attention)
    constants = device.constants
    eager = 0 if workload.software.fused else _EAGER_KERNELS
    comms = 4 if parallel.tp > 1 else 0
    launch = []
    for part, kernels in ((0, forward_kernels + eager + comms), (1, backward_kernels + 2 * eager + comms)):
        busy = gemm[part] + attention[part] + pointwise[part] + tensor[part] + kernels * constants.kernel_us * _MICRO
        issued = kernels * constants.dispatch_us * _MICRO
        waited = (busy**_SMOOTH + issued**_SMOOTH) ** (1 / _SMOOTH) - busy
        launch.append(kernels * constants.kernel_us * _MICRO + waited)
    return LayerTime(gemm=gemm, attention=attention, pointwise=pointwise, launch=(launch[0], launch[1]), tensor=tensor)


def trunk_time(workload: Workload, *, device: Device, fabric: Fabric) -> LayerTime:
    """Return the time of a layer below all adapters: one forward pass, of each sample once."""
    whole = layer_time(replace(workload, frozen=None), device=device, fabric=fabric)
    return LayerTime(**{field.name: (getattr(whole, field.name)[0], 0.0) for field in fields(whole)})


def _gemms(workload: Workload, device: Device) -> tuple[float, float]:
    model, tp = workload.model, workload.parallel.tp
    tokens, hidden = workload.tokens, model.hidden
    queries = max(1, model.queries // tp)
    shapes = [(tokens, max(1, (model.queries + model.keys_values) // tp), hidden), (tokens, hidden, queries)]
    times = 1.0
    if model.experts:
        # Balanced routing: an expert's rows are its share of the tokens that its group of ranks routes.
        local = max(1, model.experts // workload.parallel.ep)
        rows = max(1, tokens * model.active_experts // local)
        width, times = max(1, model.expert_ffn), float(local)
    else:
        rows, width = tokens, max(1, model.ffn // tp)
    mlp = [(rows, width * (model.mlp_matrices - 1), hidden), (rows, hidden, width)]
    forward = backward = 0.0
    for factor, group in ((1.0, shapes), (times, mlp)):
        for m, n, k in group:
            forward += factor * gemm_seconds(m, n, k, device=device)
            backward += factor * gemm_seconds(m, k, n, device=device)
            if workload.frozen is None:
                backward += factor * gemm_seconds(n, k, m, device=device)
    return forward, backward


def _adapters(workload: Workload, frozen: Frozen, device: Device) -> tuple[float, float]:
    """Return the seconds of one pass over what adapters add to a layer: its products, and adding their results."""
    tokens, products, moved = workload.tokens, 0.0, 0.0
    for rows, columns in frozen.matrices:
        if columns:
            products += gemm_seconds(tokens, rows, columns, device=device)
        moved += 2.0 * tokens * rows * workload.element_bytes
    return products / frozen.adapters, device.bytes_seconds(moved) / frozen.adapters


def _pointwise(workload: Workload, device: Device) -> tuple[float, float]:
    """Count bytes moved a token: norms, residual adds, rotary embedding, activation, and casts to 8 bits."""
    model, parallel, software = workload.model, workload.parallel, workload.software
    size = workload.element_bytes
    stream = model.hidden / (parallel.tp if parallel.sequence else 1)
    inner = model.active_mlp_width / parallel.tp
    heads = (model.queries + model.keys_values) / parallel.tp
    # norm: read, write; residual add: read two, write one. Two of each in a layer.
    forward = 10 * stream * size
    backward = 14 * stream * size
    rotary = 2 * heads * size
    forward += rotary
    backward += rotary
    activation = (3, 5) if model.gated else (2, 3)
    forward += activation[0] * inner * size
    backward += activation[1] * inner * size
    if software.dropout:
        forward += 2 * stream  # masks; the dropout itself is part of the residual add
        backward += 2 * (2 * size + 1) * stream
    if not software.fused:
        # An eager RMSNorm upcasts, squares, averages, scales and casts back: 16 passes where a fused kernel has 2.
        norm = 32.0 if model.gated else 0.0
        forward += 2 * norm * stream + 2 * rotary + 2 * inner * size
        backward += 3 * norm * stream + 2 * rotary + 2 * inner * size
    if device.operand_bytes < 2:
        operands = 2 * stream + inner + heads
        forward += _QUANTIZE_BYTES * operands
        backward += 2 * _QUANTIZE_BYTES * operands
    tokens = workload.tokens
    return device.bytes_seconds(forward * tokens), device.bytes_seconds(backward * tokens)


def _traffic(
    workload: Workload, fabric: Fabric, *, gemm: tuple[float, float], attention: tuple[float, float]
) -> tuple[float, float]:
    """Return the exposed traffic of tensor, context and expert parallelism of one layer."""
    parallel, model, constants = workload.parallel, workload.model, fabric.constants
    size = workload.tokens * model.hidden * workload.element_bytes
    forward = backward = 0.0
    if parallel.tp > 1:
        # An all-reduce is a reduce-scatter and an all-gather: two of each, whether sequence parallel or not.
        one = 4 * fabric.gather_seconds(size, members=parallel.tp, stride=1)
        hidden = constants.tp_hidden if workload.software.overlap_tp else 0.0
        forward += one * (1 - hidden)
        # The gradient's traffic runs under the weight gradient's GEMM where the framework launches it in time.
        backward += one * (1 - hidden)
    if parallel.cp > 1:
        ring = fabric.gather_seconds(
            workload.tokens * parallel.cp * model.keys_values / parallel.tp * workload.element_bytes,
            members=parallel.cp,
            stride=parallel.tp,
        )
        forward += max(0.0, ring - attention[0])
        backward += max(0.0, 2 * ring - attention[1])
    if model.experts and parallel.ep > 1:
        routed = workload.tokens * model.active_experts * model.hidden * workload.element_bytes
        exchange = 2 * fabric.gather_seconds(routed, members=parallel.ep, stride=parallel.tp)
        forward += exchange
        backward += exchange
    return forward, backward


def head_time(workload: Workload, *, device: Device) -> tuple[float, float]:
    """Return the time of the output layer and the loss for one micro-batch, forward and backward."""
    model, tokens, tp = workload.model, workload.tokens * workload.copies, workload.parallel.tp
    vocab = -(-model.vocab // tp)
    rate = device.gemm_16 if workload.precision != "fp32" else device.gemm
    forward = gemm_seconds(tokens, vocab, model.hidden, device=device, rate=rate)
    backward = gemm_seconds(tokens, model.hidden, vocab, device=device, rate=rate)
    if workload.frozen is None:
        backward += gemm_seconds(vocab, model.hidden, tokens, device=device, rate=rate)
    # fp32 logits: written, read for the maximum, the sum and the loss; gradient written and cast.
    logits = float(tokens) * (vocab if workload.software.parallel_loss else model.vocab)
    return forward + device.bytes_seconds(16 * logits), backward + device.bytes_seconds(12 * logits)


def embedding_time(workload: Workload, *, device: Device) -> tuple[float, float]:
    """Return the time of the embedding look-up and of its gradient's scatter, forward and backward."""
    moved = 2.0 * workload.tokens * workload.model.hidden * workload.element_bytes
    if workload.frozen is not None:
        return device.bytes_seconds(moved), 0.0
    table = 4.0 * workload.model.vocab * workload.model.hidden / workload.parallel.tp
    return device.bytes_seconds(moved), device.bytes_seconds(moved + table)
