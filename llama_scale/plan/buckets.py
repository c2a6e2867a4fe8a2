"""How Megatron-Core's distributed optimizer lays parameters out in buffers and cuts them over data parallel ranks.

Source: megatron-core 0.16 ``distributed/param_and_grad_buffer.py`` (``_ParamAndGradBuffer``): parameters in reverse
order, each start padded to 64 elements, each bucket's end to a common multiple of the ranks and 128; rank r owns the
r-th equal part of each bucket.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llama_scale.layout.parameters import EMBEDDING, HEAD
from llama_scale.plan.parameters import RankParameter, stage_parameters
from llama_scale.plan.stages import Stages
from llama_scale.spec.model import ModelShape

_START_ALIGNMENT = 64
_END_ALIGNMENT = 128
_QKV, _PROJECTION = "self_attention.linear_qkv.weight", "self_attention.linear_proj.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One bucket of a buffer.

    Args:
        numel: Elements, padding included; a multiple of the data parallel ranks.
        spans: (start, end) of each parameter within the bucket.
    """

    numel: int
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """How one stage's parameters are divided over its data parallel ranks.

    Args:
        numels: Parameter elements that each data parallel rank updates; they sum to the stage's parameters.
        padding: Elements that only pad the buffers of one rank.
    """

    numels: tuple[int, ...]
    padding: int


def fill_buckets(
    numels: Sequence[int], *, dp_size: int, bucket_size: int | None, alone: frozenset[int] = frozenset()
) -> tuple[Bucket, ...]:
    """Lay parameters out in buckets.

    Args:
        numels: Elements of each parameter, in the order of the buffer.
        dp_size: Data parallel ranks.
        bucket_size: A bucket closes when it holds so many elements; None: one bucket.
        alone: Positions of parameters that get a bucket of their own (a tied embedding across stages).
    """
    buckets = []
    spans: list[tuple[int, int]] = []
    # Buckets start at multiples of 128, so that positions within a bucket are aligned like those in the buffer.
    position = 0

    def close(end: int) -> None:
        nonlocal spans, position
        buckets.append(Bucket(numel=_round_up(end, math.lcm(dp_size, _END_ALIGNMENT)), spans=tuple(spans)))
        spans, position = [], 0

    for index, numel in enumerate(numels):
        start = _round_up(position, _START_ALIGNMENT)
        if index in alone and spans:
            close(start)
            start = 0
        position = start + numel
        spans.append((start, position))
        if index in alone or (bucket_size is not None and position >= bucket_size):
            close(position)
    if spans:
        close(position)
    return tuple(buckets)


def divide(buckets: Iterable[Bucket], *, dp_size: int) -> tuple[int, ...]:
    """Return the parameter elements within each rank's equal part of every bucket, padding apart."""
    held = [0] * dp_size
    for bucket in buckets:
        part = bucket.numel // dp_size
        for start, end in bucket.spans:
            for rank in range(start // part, (end - 1) // part + 1):
                held[rank] += min(end, (rank + 1) * part) - max(start, rank * part)
    return tuple(held)


def stage_shards(
    shape: ModelShape,
    stages: Stages,
    *,
    pp_rank: int,
    tp_size: int,
    dp_size: int,
    vocab_pad_multiple: int,
    overlap_grad_reduce: bool,
) -> Shards:
    """Return how the distributed optimizer divides one stage's parameters.

    Args:
        shape: The model.
        stages: All stages.
        pp_rank: The stage.
        tp_size: Tensor parallel ranks.
        dp_size: Data parallel ranks.
        vocab_pad_multiple: See ``layout.parameters.padded_vocab_size``.
        overlap_grad_reduce: Gradients are reduced bucket by bucket during the backward pass.
    """
    parameters = stage_parameters(
        shape, stages, pp_rank=pp_rank, tp_size=tp_size, vocab_pad_multiple=vocab_pad_multiple
    )
    shared = shape.tie_word_embeddings and len(stages) > 1
    alone = (EMBEDDING, HEAD) if shared else ()
    # Megatron-Core splits only the first chunk of the first stage: elsewhere reduction is off the critical path.
    split = overlap_grad_reduce and pp_rank == 0
    return parameter_shards(parameters, dp_size=dp_size, split=split, alone=alone)


def parameter_shards(
    parameters: Sequence[RankParameter], *, dp_size: int, split: bool, alone: Sequence[str] = ()
) -> Shards:
    """Return how the distributed optimizer divides a stage's parameters.

    Args:
        parameters: Those that train, in the modules' order.
        dp_size: Data parallel ranks.
        split: The first chunk's buffer consists of several buckets.
        alone: Names of parameters that get a bucket of their own.
    """
    buckets: list[Bucket] = []
    for virtual_rank in sorted({p.virtual_rank for p in parameters}):
        mine = module_order([p for p in parameters if p.virtual_rank == virtual_rank])[::-1]
        buckets += fill_buckets(
            [p.numel for p in mine],
            dp_size=dp_size,
            bucket_size=max(40_000_000, 1_000_000 * dp_size) if split and virtual_rank == 0 else None,
            alone=frozenset(i for i, p in enumerate(mine) if p.name in alone),
        )
    real = sum(p.numel for p in parameters)
    return Shards(numels=divide(buckets, dp_size=dp_size), padding=sum(b.numel for b in buckets) - real)


def module_order(parameters: Sequence[RankParameter]) -> list[RankParameter]:
    """Return a chunk's parameters in the order of the modules, in which the projection is before QKV."""
    modules = list(parameters)
    for index, parameter in enumerate(modules[:-1]):
        if parameter.name.endswith(_QKV) and modules[index + 1].name.endswith(_PROJECTION):
            modules[index], modules[index + 1] = modules[index + 1], parameter
    return modules


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
