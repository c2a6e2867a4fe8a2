"""A spec as a workload of the cost model: what llama-scale's own engines do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_scale.layout.parameters import padded_vocab_size
from llama_scale.plan.frozen_base import spec_extra, spec_frozen
from llama_scale.plan.hardware import Hardware, scale_up_domain
from llama_scale.plan.workload import Dimensions, Parallelism, Precision, Sharding, Software, Workload
from llama_scale.plan.zero_buffers import Buckets

if TYPE_CHECKING:
    from llama_scale.spec.engine import Engine
    from llama_scale.spec.recompute import Recompute
    from llama_scale.spec.run import RunSpec


def spec_workload(spec: RunSpec, *, hardware: Hardware) -> Workload:
    """Return the workload of a resolved spec on this hardware."""
    batch, parallel = spec.batch, spec.parallel
    assert batch.micro is not None and batch.global_ is not None, "a resolved spec has all batch numbers"
    model = spec_dimensions(spec)
    chunks = parallel.pipeline * parallel.virtual_stages
    frozen = spec_frozen(spec, spec_extra(spec), tp_size=parallel.tensor)
    return Workload(
        model=model,
        parallel=Parallelism(
            dp=parallel.data,
            tp=parallel.tensor,
            pp=parallel.pipeline,
            vp=parallel.virtual_stages,
            sharding=engine_sharding(spec.engine, pp_size=parallel.pipeline),
            sequence=parallel.sequence,
            recompute=spec.recompute.kind,
            recompute_layers=recomputed_share(
                spec.recompute, stage_layers=parallel.stage_layers, chunks=chunks, layers=model.layers
            ),
            stage_layers=parallel.stage_layers,
        ),
        software=engine_software(
            spec.engine,
            pp_size=parallel.pipeline,
            gradient_bytes=2 if spec.precision.gradients == "bf16" and frozen is None else 4,
            on_cpu=spec.cluster.device == "cpu",
        ),
        hardware=hardware,
        devices_per_node=scale_up_domain(
            hardware, devices=parallel.world_size, devices_per_node=spec.cluster.devices_per_node
        ),
        precision=spec_precision(spec),
        seq_length=spec.data.seq_length,
        micro_batch=batch.micro,
        global_batch=batch.global_,
        frozen=frozen,
    )


def spec_precision(spec: RunSpec) -> Precision:
    """Return the format of the GEMMs."""
    return "bf16" if spec.precision.compute == "bf16" else "fp32"


def spec_dimensions(spec: RunSpec, *, tp_size: int | None = None) -> Dimensions:
    """Return the dimensions of a resolved spec's model, its vocabulary padded for the spec's or another tp_size."""
    model = spec.model
    assert model.kind == "inline", "a resolved spec has an inline model"
    return Dimensions(
        layers=model.num_layers,
        hidden=model.hidden_size,
        ffn=model.ffn_hidden_size,
        heads=model.num_heads,
        kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        vocab=padded_vocab_size(
            model.vocab_size, tp_size=tp_size or spec.parallel.tensor, multiple=model.vocab_pad_multiple
        ),
        gated=True,
        tied=model.tie_word_embeddings,
    )


def recomputed_share(recompute: Recompute, *, stage_layers: tuple[int, ...] | None, chunks: int, layers: int) -> float:
    """Return the share of layers that full recomputation covers; ``block`` covers the first ones of each chunk."""
    if recompute.kind != "full" or recompute.method == "uniform":
        return 1.0
    counts = stage_layers or (layers // chunks,) * chunks
    return min(1.0, sum(min(recompute.layers, count) for count in counts) / layers)


def engine_sharding(engine: Engine, *, pp_size: int) -> Sharding:
    """Return what an engine's data parallel ranks divide; DeepSpeed's pipeline engine always runs ZeRO-1."""
    if engine.kind == "megatron":
        return "zero1" if engine.distributed_optimizer else "none"
    if engine.kind == "ddp":
        return "none"
    stages: tuple[Sharding, ...] = ("none", "zero1", "zero2", "zero3")
    return stages[max(engine.zero, 1) if pp_size > 1 else engine.zero]


def engine_software(engine: Engine, *, pp_size: int, gradient_bytes: int, on_cpu: bool = False) -> Software:
    """Return what llama-scale's engines do."""
    overlap_grads = overlap_params = overlap_p2p = False
    buckets = None
    if engine.kind == "megatron":
        overlap_grads, overlap_params = engine.overlap_grad_reduce, engine.overlap_param_gather
        overlap_p2p = engine.overlap_p2p
    elif engine.kind == "deepspeed":
        overlap_grads = engine.overlap_comm and pp_size == 1
        overlap_params = engine.zero == 3  # ZeRO-3 always fetches ahead
        buckets = Buckets(elements=engine.bucket_elements, overlap=engine.overlap_comm, untouched_free=on_cpu)
    else:
        overlap_grads = True
    return Software(
        attention="flash2",  # torch's scaled_dot_product_attention
        fused=True,
        overlap_grads=overlap_grads,
        overlap_params=overlap_params,
        overlap_p2p=overlap_p2p,
        gradient_bytes=gradient_bytes,
        reduce_bytes=gradient_bytes,
        reduce_each_pass=engine.kind == "deepspeed" and engine.zero == 2 and pp_size == 1,
        buckets=buckets,
        output_copy=True,  # the kernel orders its output by heads
        flat_gather=engine.kind != "deepspeed",
        chunked_loss=True,
        logits_bytes=10,
    )
