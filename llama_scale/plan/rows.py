"""Published measurements as workloads: one CSV row names model, machine and layout; what it leaves open is inferred.

Columns are those of docs/planner.md. ``framework``, ``attention_kernel`` and ``notes`` say what software did; only
general facts are read from them: which kernels are fused, which traffic overlaps, how fast the network is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from llama_scale.plan.frozen_base import lora_frozen
from llama_scale.plan.hardware import HARDWARE, Hardware, find_hardware
from llama_scale.plan.row_reader import RowReader
from llama_scale.plan.workload import (
    AttentionKernel,
    Dimensions,
    Frozen,
    Parallelism,
    RecomputeKind,
    Software,
    Workload,
)

_SYSTEMS = {
    "A100-80GB-SXM": "a100",
    "A100-40GB-SXM": "a100-40gb",
    "A800-80GB-SXM": "a800",
    "H100-80GB-SXM": "h100",
    "H100-96GB-SXM-500W": "h100-96gb",
    "H100-PCIe": "h100-pcie",
    "H200-141GB-SXM": "h200",
    "B200-180GB": "b200",
    "B300-288GB": "b300",
    "GB200-186GB-NVL72": "gb200",
    "GB300-288GB-NVL72": "gb300",
}

_MOST_LAYERS = 10_000


def read_row(row: Mapping[str, str]) -> tuple[Workload, list[str]]:
    """Return the workload of a row and notes on what was assumed.

    Cells that are empty or no number take the most common value of published runs, never an error.
    """
    reader = RowReader(row)
    hardware = _hardware(reader)
    model = _dimensions(reader)
    parallel = _parallelism(reader, model)
    precision = reader.precision()
    gpus_per_node = reader.number("gpus_per_node", hardware.link_devices)
    micro = reader.optional("micro_batch") or 1
    if parallel.pp > 1 and micro > 1 and micro * parallel.dp == reader.number("global_batch", micro * parallel.dp):
        reader.notes.append(f"micro_batch={micro} is the whole batch of a pipeline; taken as {micro} of 1")
        micro = 1
    workload = Workload(
        model=model,
        parallel=parallel,
        software=_software(reader, parallel=parallel, gated=model.gated),
        hardware=hardware,
        devices_per_node=gpus_per_node,
        precision=precision,
        seq_length=reader.number("seq_len", 2048),
        micro_batch=micro,
        global_batch=reader.number("global_batch", micro * parallel.dp),
        frozen=_frozen(reader, model, parallel),
    )
    return workload, reader.notes


def _frozen(reader: RowReader, model: Dimensions, parallel: Parallelism) -> Frozen | None:
    if reader.text("task").lower() != "lora":
        return None
    reader.notes.append(f"task='lora' taken as rank {_LORA_RANK} on all linear layers")
    return lora_frozen(model, rank=_LORA_RANK, tp_size=parallel.tp)


_LORA_RANK = 16
"""Published fine-tuning benchmarks do not print it; common recipes have 8 to 32, and time hardly depends on it."""


def _hardware(reader: RowReader) -> Hardware:
    name = reader.text("gpu")
    row = find_hardware(_SYSTEMS.get(name, name))
    if row is None:
        named = [h for h in HARDWARE if h.name in name.lower()]
        row = max(named, key=lambda h: len(h.name)) if named else find_hardware("h100")
        assert row is not None
        reader.notes.append(f"gpu={name!r} is not in the hardware table; taken as {row.name}")
    share = _network_gbit(reader.text("notes"), gpus_per_node=reader.number("gpus_per_node", row.link_devices))
    return row if share is None else row.model_copy(update={"network_gbit_per_s": share})


def _network_gbit(notes: str, *, gpus_per_node: int) -> float | None:
    """Return a device's share of a network that the notes name, as in ``4x100Gb`` or ``800Gbps-per-node``."""
    adapters = re.search(r"(\d+)x(\d+)Gb", notes)
    if adapters:
        return int(adapters[1]) * int(adapters[2]) / gpus_per_node
    node = re.search(r"(\d+)Gbps[- ](?:per-node|RoCE/node)", notes)
    return int(node[1]) / gpus_per_node if node else None


def _dimensions(reader: RowReader) -> Dimensions:
    hidden = reader.number("hidden", 4096)
    heads = reader.number("n_heads", max(1, hidden // 128))
    gated = reader.flag("gated_mlp")
    ffn = reader.number("ffn_hidden", 4 * hidden)
    experts = reader.optional("moe_n_experts")
    active = min(experts, reader.number("moe_topk", 2)) if experts else 0
    expert_ffn = reader.number("moe_ffn_hidden", ffn) if experts else 0
    return Dimensions(
        layers=reader.number("n_layers", 32, largest=_MOST_LAYERS),
        hidden=hidden,
        ffn=ffn,
        heads=heads,
        kv_heads=reader.number("n_kv_heads", heads),
        head_dim=reader.number("head_dim", max(1, hidden // heads)),
        vocab=reader.number("vocab", 50304),
        gated=gated,
        tied=reader.flag("tied_emb"),
        experts=experts,
        active_experts=active,
        expert_ffn=expert_ffn,
    )


def _parallelism(reader: RowReader, model: Dimensions) -> Parallelism:
    tp, cp = reader.number("tp", 1), reader.number("cp", 1)
    pp = reader.number("pp", 1, largest=model.layers)
    dp = _replicas(reader, one=tp * pp * cp)
    vp = reader.number("vp", _usual_chunks(model.layers, pp), largest=-(-model.layers // pp)) if pp > 1 else 1
    text = reader.text("recompute").lower()
    kind: RecomputeKind = "full" if "full" in text else "selective" if text == "selective" else "none"
    share = 1.0
    part = re.search(r"recompute of (\d+)/(\d+) layers", reader.text("notes"))
    if text.startswith("partial"):
        share = int(part[1]) / int(part[2]) if part else 0.25
    balanced = "nanotron" in reader.text("framework").lower() and pp > 1 and vp == 1
    return Parallelism(
        dp=dp,
        tp=tp,
        pp=pp,
        vp=vp,
        cp=cp,
        ep=max(1, reader.optional("ep")),
        sharding=reader.sharding(),
        sequence=reader.flag("seq_parallel") and tp > 1,
        recompute=kind,
        recompute_layers=share,
        stage_layers=(_balanced(model, pp) or None) if balanced else None,
    )


def _replicas(reader: RowReader, *, one: int) -> int:
    """Return the replicas of ``one`` devices each that the row's devices make; whole ones, and at least one."""
    printed = reader.optional("dp") or 1
    devices = reader.number("n_gpus", printed * one)
    if devices % one:
        taken = max(1, devices // one) * one
        reader.notes.append(f"n_gpus={devices} is no multiple of tp x pp x cp = {one}; taken as {taken}")
    return max(1, devices // one)


def _usual_chunks(layers: int, pp: int) -> int:
    """Return the interleaving of published runs that do not print it: chunks of two layers, else of one."""
    places = layers + 2 if layers % pp and (layers + 2) % pp == 0 else layers
    each = max(1, places // pp)
    return each // 2 if each % 2 == 0 else each


def _balanced(model: Dimensions, pp: int) -> tuple[int, ...]:
    """Return layers of stages that weigh the output layer's FLOPs like those of layers."""
    layer = model.attention_numel + model.mlp_matrices * model.hidden * model.active_mlp_width
    head = model.vocab * model.hidden / layer
    share = (model.layers + head) / pp
    counts = [round(share * (stage + 1)) - round(share * stage) for stage in range(pp - 1)]
    last = model.layers - sum(counts)
    return (*counts, last) if last >= 1 else ()


_MODERN = ("nemo", "bridge", "megatron-core", "maxtext", "paxml", "megascale", "meta internal")
"""Frameworks since 2023 that overlap tensor, data and pipeline traffic with compute."""

_COMPILED = ("compile", "jax", "maxtext", "pax")
"""Frameworks that compile element-wise operations into few kernels."""


def _software(reader: RowReader, *, parallel: Parallelism, gated: bool) -> Software:
    framework, kernel = reader.text("framework").lower(), reader.text("attention_kernel").lower()
    notes = reader.text("notes").lower()

    def named(words: Iterable[str]) -> bool:
        return any(word in framework for word in words)

    modern, compiled = named(_MODERN), named(_COMPILED)
    megatron = "megatron" in framework or modern
    flash_family = named(("internevo", "nanotron"))  # build on FlashAttention's fused norms and rotary embedding
    sharded = parallel.sharding in ("zero3", "hsdp")
    overlaps = modern or compiled or sharded or "internevo" in framework
    single = not (megatron or named(("nanotron", "titan")))  # gradients stay in 16 bits
    extra = re.search(r"\+(\d) B/param", reader.text("notes"))
    deepspeed = named(("deepspeed", "+dee")) and not extra and parallel.sharding != "none"
    sends = 2 if single or (kernel == "unfused" and megatron) or "pure" in notes else 4
    return Software(
        attention=_attention(kernel),
        fused=not gated or modern or compiled or "rms" in kernel or flash_family,
        overlap_grads=overlaps and "no dp overlap" not in notes,
        overlap_params=overlaps and "internevo" not in framework,
        overlap_tp=modern or "async" in notes or "asynctp" in framework,
        overlap_p2p=modern or parallel.vp > 1,
        scatter_p2p=megatron,
        dropout=kernel == "unfused" and megatron,
        gradient_bytes=sends + (int(extra[1]) if extra else 0),
        reduce_bytes=sends,
        optimizer_bytes=24 if "internevo" in framework else 16 if deepspeed else 12,
        flat_gather=not named(("deepspeed", "+dee")),
        parallel_loss=megatron or flash_family or named(("titan",)),
        logits_bytes=10 if megatron else 14 if flash_family or named(("titan", "composer")) else 18,
        selective_operations=compiled or named(("titan",)),
    )


def _attention(kernel: str) -> AttentionKernel:
    if kernel == "torch":
        return "unfused-eager"
    if kernel in ("unfused", "fused", "unknown"):
        return "unfused"
    if "v1" in kernel or "flash1" in kernel:
        return "flash1"
    return "flash3" if "cudnn" in kernel or "flash3" in kernel else "flash2"
