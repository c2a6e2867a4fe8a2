"""Rules about the model: its own numbers, and how tensor parallelism and pipeline stages divide them."""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from typing import TYPE_CHECKING

from llama_scale.errors import Problem
from llama_scale.spec.nearby import divisors, either, multiples_around, nearest
from llama_scale.spec.rule import Rule, problem

if TYPE_CHECKING:
    from llama_scale.spec.model import InlineModel
    from llama_scale.spec.run import RunSpec

_SHOWN_STAGES = 32
"""More stages than these are not written out as an example."""


def _shape(spec: RunSpec) -> InlineModel:
    assert spec.model.kind == "inline"  # resolved before rules run
    return spec.model


def _heads(spec: RunSpec) -> Iterator[Problem]:
    shape = _shape(spec)
    if shape.num_heads % shape.num_kv_heads:
        valid = nearest(shape.num_kv_heads, divisors(shape.num_heads))
        yield problem(
            "model.num_kv_heads",
            f"num_kv_heads={shape.num_kv_heads} does not divide num_heads={shape.num_heads}: each key/value head "
            "serves the same number of query heads",
            hint=f"nearest valid num_kv_heads: {either(valid)}; or num_heads: "
            f"{either(multiples_around(shape.num_heads, shape.num_kv_heads))}",
            code="heads-kv-heads",
        )
    if shape.head_dim % 2:
        yield problem(
            "model.head_dim",
            f"head_dim={shape.head_dim} is odd: RoPE turns pairs of numbers",
            hint=f"nearest valid: {either([d for d in (shape.head_dim - 1, shape.head_dim + 1) if d])}",
            code="head-dim-even",
        )
    scaling = shape.rope_scaling
    if scaling is not None and scaling.low_freq_factor >= scaling.high_freq_factor:
        yield problem(
            "model.rope_scaling",
            f"low_freq_factor={scaling.low_freq_factor:g} is not less than "
            f"high_freq_factor={scaling.high_freq_factor:g}",
            hint="Llama 3 uses 1 and 4",
            code="rope-factors",
        )


def _tensor(spec: RunSpec) -> Iterator[Problem]:
    shape, tensor = _shape(spec), spec.parallel.tensor
    sizes = {
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_kv_heads,
        "ffn_hidden_size": shape.ffn_hidden_size,
    }
    common = divisors(gcd(*sizes.values()))
    for name, size in sizes.items():
        if size % tensor:
            yield problem(
                "parallel.tensor",
                f"tensor={tensor} does not divide {name}={size} of {shape.name}",
                hint=f"use {either(_near_list(tensor, divisors(size)))}; valid for heads, kv heads and ffn together: "
                f"{either(_near_list(tensor, common))}; or {name}: {either(multiples_around(size, tensor))}",
                code=f"tensor-{name.replace('_', '-')}",
            )


def _near_list(asked: int, values: list[int]) -> list[int]:
    """Return all values if they are few, else the six nearest."""
    return values if len(values) <= 6 else nearest(asked, values, count=6)


def _layers(spec: RunSpec) -> Iterator[Problem]:
    layers, parallel = _shape(spec).num_layers, spec.parallel
    chunks = parallel.pipeline * parallel.virtual_stages
    product = f"pipeline x virtual_stages = {parallel.pipeline} x {parallel.virtual_stages} = {chunks}"
    if parallel.stage_layers is not None:
        yield from _stage_layers(parallel.stage_layers, layers, chunks, product)
    elif layers % chunks:
        if parallel.virtual_stages > 1:
            near = [
                v
                for v in divisors(layers)
                if v <= layers // parallel.pipeline and layers % (v * parallel.pipeline) == 0
            ]
            degrees = f"virtual_stages: {either(nearest(parallel.virtual_stages, near))}; or " if near else ""
        else:
            degrees = f"pipeline: {either(nearest(parallel.pipeline, divisors(layers)))}; or "
        hint = f"nearest valid {degrees}num_layers: {either(multiples_around(layers, chunks))}"
        if chunks <= min(layers, _SHOWN_STAGES):
            hint += f"; or uneven stages, e.g. stage_layers: {_even_split(layers, chunks)}"
        yield problem(
            "parallel.pipeline",
            f"{product} does not divide num_layers={layers}",
            hint=hint,
            code="layers-stages",
        )


def _stage_layers(stage_layers: tuple[int, ...], layers: int, chunks: int, product: str) -> Iterator[Problem]:
    if chunks > layers:
        example = "use fewer stages than layers"
    elif chunks <= _SHOWN_STAGES:
        example = f"e.g. stage_layers: {_even_split(layers, chunks)}"
    else:
        example = f"{chunks} numbers of about {layers // chunks} that sum to {layers}"
    if len(stage_layers) != chunks:
        yield problem(
            "parallel.stage_layers",
            f"stage_layers has {len(stage_layers)} numbers, and {product}",
            hint=f"give {chunks} numbers; {example}",
            code="stage-layers-count",
        )
    if sum(stage_layers) != layers:
        yield problem(
            "parallel.stage_layers",
            f"stage_layers sums to {sum(stage_layers)}, and num_layers={layers}",
            hint=example,
            code="stage-layers-sum",
        )


def _even_split(layers: int, chunks: int) -> list[int]:
    base, extra = divmod(layers, chunks)
    return [base + (index < extra) for index in range(chunks)]


def _sequence_length(spec: RunSpec) -> Iterator[Problem]:
    shape, length = _shape(spec), spec.data.seq_length
    if length > shape.max_position_embeddings:
        yield problem(
            "data.seq_length",
            f"seq_length={length} is beyond max_position_embeddings={shape.max_position_embeddings} of {shape.name}",
            hint=f"use at most {shape.max_position_embeddings}, or an inline model with more max_position_embeddings",
            code="seq-length-positions",
        )


def _sequence_parallel(spec: RunSpec) -> Iterator[Problem]:
    parallel, length = spec.parallel, spec.data.seq_length
    if parallel.sequence and length % parallel.tensor:
        yield problem(
            "data.seq_length",
            f"seq_length={length} is not divisible by tensor={parallel.tensor}, as sequence: true needs",
            hint=f"nearest valid seq_length: {either(multiples_around(length, parallel.tensor))}; or tensor: "
            f"{either(nearest(parallel.tensor, divisors(length)))}",
            code="sequence-length-tensor",
        )


def _recompute_layers(spec: RunSpec) -> Iterator[Problem]:
    recompute, parallel, layers = spec.recompute, spec.parallel, _shape(spec).num_layers
    chunks = parallel.pipeline * parallel.virtual_stages
    if recompute.kind != "full":
        return
    if parallel.stage_layers is None and layers % chunks:
        return  # reported by the rule on stages
    sizes = set(parallel.stage_layers or (layers // chunks,))
    if recompute.method == "uniform":
        common = gcd(*sizes)
        if common % recompute.layers:
            yield problem(
                "recompute.layers",
                f"layers={recompute.layers} does not divide the {either(sorted(sizes))} layers of a model chunk, as "
                "method: uniform needs",
                hint=f"use {either(_near_list(recompute.layers, divisors(common)))}",
                code="recompute-uniform",
            )
    elif recompute.layers > min(sizes):
        yield problem(
            "recompute.layers",
            f"layers={recompute.layers} is more than the {min(sizes)} layers of the smallest model chunk",
            hint=f"use 1 to {min(sizes)}",
            code="recompute-block",
        )


RULES = (
    Rule(("model",), _heads),
    Rule(("model", "parallel"), _tensor),
    Rule(("model", "parallel"), _layers),
    Rule(("model", "data"), _sequence_length),
    Rule(("parallel", "data"), _sequence_parallel),
    Rule(("recompute", "parallel", "model"), _recompute_layers),
)
"""All rules of this file."""
