"""Bytes of device memory by part: model states by engine and sharding, activations, logits, buffers.

Model states follow Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 3): mixed-precision Adam needs 2 bytes of
weights, 2 or 4 of gradients, 4 of fp32 masters and 8 of moments a parameter: 18 with fp32 gradients, and 6 + 12/d
with Megatron-Core's distributed optimizer. What is counted are tensors; the framework's own memory (CUDA context,
kernels, the allocator's slack) comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from llama_scale.layout.parameters import layer_parameters, padded_vocab_size
from llama_scale.plan.activations import ActivationCase, logits_bytes, stage_activation_bytes
from llama_scale.plan.buckets import Shards, stage_shards
from llama_scale.plan.parameters import stage_numel, stage_parameters
from llama_scale.plan.stages import Stages
from llama_scale.plan.topology import Topology
from llama_scale.plan.zero_buffers import Buckets, ZeroCase, bucket_bytes, gathered_elements
from llama_scale.plan.zero_shards import ZeroShards, zero_shards
from llama_scale.spec.engine import DdpEngine, DeepSpeedEngine, Engine, MegatronEngine
from llama_scale.spec.precision import Precision

_FP32_BYTES = 4
_MOMENTS_BYTES = 8
"""AdamW's exp_avg and exp_avg_sq, both fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStates:
    """Bytes of model states on one rank.

    Args:
        weights: Weights in the format of the computation.
        gradients: Accumulated gradients.
        masters: fp32 copies of the weights that the optimizer updates.
        moments: AdamW's two moments.
        buffers: Communication buckets, their padding, and gathered weights.
        host: Bytes that offloading keeps in host memory or on disk instead.
    """

    weights: int
    gradients: int
    masters: int
    moments: int
    buffers: int
    host: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """Bytes of one rank of a pipeline stage (all its ranks hold equally much).

    Args:
        pp_rank: The stage.
        parameters: Parameter elements of one rank, padding and a tied embedding's copy included.
        states: Model states by part.
        activations: Peak of stored activations over a step.
        logits: Logits and softmax of one micro-batch; 0 on stages without the output layer.
        total: Sum of all parts on the device.
    """

    pp_rank: int
    parameters: int
    states: ModelStates
    activations: int
    logits: int
    total: int


def element_bytes(precision: Precision) -> int:
    """Return the bytes of one weight or activation."""
    return 2 if precision.compute == "bf16" else _FP32_BYTES


def gradient_bytes(precision: Precision) -> int:
    """Return the bytes of one accumulated gradient; fp32 weights have fp32 gradients."""
    return 2 if precision.compute == "bf16" and precision.gradients == "bf16" else _FP32_BYTES


def model_states(
    numel: int,
    *,
    engine: Engine,
    precision: Precision,
    dp_size: int,
    pp_size: int,
    layer_numel: int = 0,
    head_numel: int = 0,
    shards: Shards | None = None,
    zero: ZeroShards | None = None,
    trainable: bool = True,
    untouched_free: bool = False,
) -> ModelStates:
    """Return the model states of a rank that holds ``numel`` parameter elements.

    Args:
        numel: Elements of the rank's (tensor and pipeline parallel) share of the model.
        engine: Engine and its sharding.
        precision: Number formats.
        dp_size: Ranks that sharded states are divided over.
        pp_size: Pipeline stages; DeepSpeed's pipeline engine always runs ZeRO-1.
        layer_numel: Elements of one layer on a rank, for ZeRO-3's gathered weights.
        head_numel: Elements of the output layer on a rank, for the same.
        shards: How the distributed optimizer divides the elements, for the rank that has most; equally if not given.
        zero: How ZeRO divides them; equally and without padding if not given.
        trainable: False: weights alone, which ZeRO-3 divides and gathers all the same.
        untouched_free: Memory counts when it is first written, as on CPUs.
    """
    if not trainable and not (isinstance(engine, DeepSpeedEngine) and engine.zero == 3):
        return ModelStates(
            weights=element_bytes(precision) * numel, gradients=0, masters=0, moments=0, buffers=0, host=0
        )
    weight, gradient = element_bytes(precision), gradient_bytes(precision)
    master = _FP32_BYTES if weight != _FP32_BYTES else 0
    share = -(-numel // dp_size)
    if isinstance(engine, MegatronEngine):
        padding = 0
        sharded = numel
        if engine.distributed_optimizer:
            sharded = max(shards.numels) if shards else share
            padding = (weight + gradient) * shards.padding if shards else 0
        # Adam on fp32 masters turns a bf16 gradient of its shard into fp32 for the update.
        update = _FP32_BYTES * sharded if gradient != _FP32_BYTES else 0
        return ModelStates(
            weights=weight * numel,
            gradients=gradient * numel,
            masters=master * sharded,
            moments=_MOMENTS_BYTES * sharded,
            buffers=padding + update,
            host=0,
        )
    if isinstance(engine, DdpEngine):
        return _whole_states(numel, precision)
    zero = zero or ZeroShards(whole=numel, share=share, touched=share)
    stage = zero_stage(engine, pp_size=pp_size)
    case = ZeroCase(
        stage=stage,
        dp_size=dp_size,
        trained=numel if trainable else 0,
        weight_bytes=weight,
        gradient_bytes=gradient,
    )
    buckets = Buckets(elements=engine.bucket_elements, overlap=engine.overlap_comm, untouched_free=untouched_free)
    gathered = 0
    if stage == 3:
        gathered = weight * gathered_elements(held=numel, layer=layer_numel, whole=head_numel + zero.kept)
    states = _zero_states(numel, engine=engine, precision=precision, zero=zero, stage=stage)
    if not trainable:
        host = states.host if engine.offload_parameters is not None else 0
        return replace(states, gradients=0, masters=0, moments=0, buffers=gathered, host=host)
    return replace(states, buffers=gathered + bucket_bytes(buckets, case))


def zero_stage(engine: DeepSpeedEngine, *, pp_size: int) -> int:
    """Return the ZeRO stage that runs: DeepSpeed's pipeline engine always divides the optimizer."""
    return max(engine.zero, 1) if pp_size > 1 else engine.zero


def _whole_states(numel: int, precision: Precision) -> ModelStates:
    """Return the states where nothing is divided and there are no buffers."""
    weight = element_bytes(precision)
    return ModelStates(
        weights=weight * numel,
        gradients=gradient_bytes(precision) * numel,
        masters=(_FP32_BYTES if weight != _FP32_BYTES else 0) * numel,
        moments=_MOMENTS_BYTES * numel,
        buffers=0,
        host=0,
    )


def _zero_states(
    numel: int, *, engine: DeepSpeedEngine, precision: Precision, zero: ZeroShards, stage: int
) -> ModelStates:
    """Return the states without buffers."""
    weight, gradient, share = element_bytes(precision), gradient_bytes(precision), zero.share
    if stage == 0:
        return _whole_states(numel, precision)
    # ZeRO keeps an fp32 partition to update for fp32 weights too (stage_1_and_2.py, stage3.py: `.clone().float()`).
    masters, moments = _FP32_BYTES * share, _MOMENTS_BYTES * share
    weights = weight * (share if stage == 3 else numel)
    # Between micro-batches, gradients of the weights' format are the parameters' own, whole; wider ones are in flat
    # fp32 buffers, padded.
    flat = gradient != weight
    gradients = {1: zero.whole if flat else numel, 2: share if flat else zero.touched, 3: share}[stage]
    host = 0
    if engine.offload_optimizer is not None:
        host += masters + moments
        masters = moments = 0
    if engine.offload_parameters is not None and stage == 3:
        host += weights
        weights = 0
    return ModelStates(
        weights=weights,
        gradients=gradient * gradients,
        masters=masters,
        moments=moments,
        buffers=0,
        host=host,
    )


def stage_memory(
    case: ActivationCase,
    stages: Stages,
    *,
    pp_rank: int,
    topology: Topology,
    engine: Engine,
    precision: Precision,
    vocab_pad_multiple: int,
    micro_batches: int,
    trainable: bool = True,
    untouched_free: bool = False,
) -> StageMemory:
    """Return the memory of one rank of a stage at the peak of a step; see ``model_states`` for the last two."""
    tp_size = topology.tp_size
    numel = stage_numel(case.shape, stages, pp_rank=pp_rank, tp_size=tp_size, vocab_pad_multiple=vocab_pad_multiple)
    shards = None
    if isinstance(engine, MegatronEngine) and engine.distributed_optimizer:
        shards = stage_shards(
            case.shape,
            stages,
            pp_rank=pp_rank,
            tp_size=tp_size,
            dp_size=topology.dp_size,
            vocab_pad_multiple=vocab_pad_multiple,
            overlap_grad_reduce=engine.overlap_grad_reduce,
        )
    zero = None
    if isinstance(engine, DeepSpeedEngine) and (stage := zero_stage(engine, pp_size=topology.pp_size)):
        zero = zero_shards(
            stage_parameters(
                case.shape, stages, pp_rank=pp_rank, tp_size=tp_size, vocab_pad_multiple=vocab_pad_multiple
            ),
            stage=stage,
            dp_size=topology.dp_size,
            persistence=engine.persistence_elements,
        )
    has_head = any(chunk.has_head for chunk in stages[pp_rank])
    rows = padded_vocab_size(case.shape.vocab_size, tp_size=tp_size, multiple=vocab_pad_multiple)
    states = model_states(
        numel,
        engine=engine,
        precision=precision,
        dp_size=topology.dp_size,
        pp_size=topology.pp_size,
        layer_numel=sum(p.numel // (1 if p.tp_dim is None else tp_size) for p in layer_parameters(case.shape, 0)),
        head_numel=rows * case.shape.hidden_size // tp_size if has_head else 0,
        shards=shards,
        zero=zero,
        trainable=trainable,
        untouched_free=untouched_free,
    )
    activations = stage_activation_bytes(case, stages, pp_rank=pp_rank, micro_batches=micro_batches)
    logits = logits_bytes(case, vocab_pad_multiple=vocab_pad_multiple) if has_head else 0
    on_device = states.weights + states.gradients + states.masters + states.moments + states.buffers
    return StageMemory(
        pp_rank=pp_rank,
        parameters=numel,
        states=states,
        activations=activations,
        logits=logits,
        total=on_device + activations + logits,
    )
