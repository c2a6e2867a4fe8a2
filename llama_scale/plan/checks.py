"""What a spec must fulfil for its plan to exist.

``validate`` checks the same and more with line numbers; these checks guard specs that are built in Python.
"""

from __future__ import annotations

from collections.abc import Iterator

from llama_scale.errors import Problem, SpecError
from llama_scale.spec.model import InlineModel
from llama_scale.spec.run import RunSpec


def plan_problems(spec: RunSpec) -> Iterator[Problem]:
    """Yield what would make the plan wrong, layers per stage apart.

    Raises:
        SpecError: the model is not resolved, so that nothing else can be checked.
    """
    yield from _unresolved(spec)
    yield from _indivisible(spec)
    parallel, batch = spec.parallel, spec.batch
    if parallel.world_size != spec.cluster.world_size:
        yield Problem(
            path=("parallel",),
            message=f"data={parallel.data} x tensor={parallel.tensor} x pipeline={parallel.pipeline} is "
            f"{parallel.world_size} processes, but the cluster has nodes={spec.cluster.nodes} x "
            f"devices_per_node={spec.cluster.devices_per_node} = {spec.cluster.world_size}",
            hint="make the product of the degrees equal to the cluster's devices",
            code="world-size",
        )
    if None not in (batch.global_, batch.micro, batch.accumulation):
        product = (batch.micro or 0) * (batch.accumulation or 0) * parallel.data
        if batch.global_ != product:
            yield Problem(
                path=("batch",),
                message=f"global={batch.global_} is not micro={batch.micro} x accumulation={batch.accumulation} x "
                f"data={parallel.data} = {product}",
                hint="give two of the three numbers; the third follows",
                code="batch-product",
            )
    if parallel.virtual_stages > 1:
        yield from _interleaving(spec)


def _unresolved(spec: RunSpec) -> Iterator[Problem]:
    hint = "read the spec with `load_spec`, which resolves it"
    if not isinstance(spec.model, InlineModel):
        raise SpecError(
            [Problem(path=("model",), message=f"model kind={spec.model.kind!r} is not resolved", hint=hint)]
        )
    for name, value in (
        ("global", spec.batch.global_),
        ("micro", spec.batch.micro),
        ("accumulation", spec.batch.accumulation),
    ):
        if value is None:
            yield Problem(path=("batch", name), message="the batch is not resolved", hint=hint)
    if spec.train.steps is None:
        yield Problem(path=("train", "steps"), message="the number of steps is not resolved", hint=hint)


def _indivisible(spec: RunSpec) -> Iterator[Problem]:
    model, tensor = spec.model, spec.parallel.tensor
    assert isinstance(model, InlineModel)
    if model.num_heads % model.num_kv_heads:
        yield Problem(
            path=("model", "num_kv_heads"),
            message=f"num_kv_heads={model.num_kv_heads} does not divide num_heads={model.num_heads}",
            hint=f"use {_divisors(model.num_heads)}",
            code="kv-heads-divisible",
        )
    for name in ("num_heads", "num_kv_heads", "ffn_hidden_size"):
        value: int = getattr(model, name)
        if value % tensor:
            yield Problem(
                path=("parallel", "tensor"),
                message=f"tensor={tensor} does not divide {name}={value}",
                hint=f"use a tensor degree that divides heads, kv heads and ffn: {_valid_tensor(model)}",
                code="tensor-divisible",
            )
    if spec.parallel.sequence and spec.data.seq_length % tensor:
        yield Problem(
            path=("parallel", "sequence"),
            message=f"sequence: true needs tensor={tensor} to divide seq_length={spec.data.seq_length}",
            hint="change data.seq_length to a multiple, or set sequence: false",
            code="sequence-divisible",
        )


def _interleaving(spec: RunSpec) -> Iterator[Problem]:
    parallel, micro_batches = spec.parallel, spec.batch.accumulation
    if parallel.pipeline == 1:
        yield Problem(
            path=("parallel", "virtual_stages"),
            message=f"virtual_stages={parallel.virtual_stages} needs pipeline > 1, but pipeline=1",
            hint="set virtual_stages: 1",
            code="virtual-stages-pipeline",
        )
    elif micro_batches is not None and micro_batches % parallel.pipeline:
        below = micro_batches - micro_batches % parallel.pipeline
        nearest = [n for n in (below, below + parallel.pipeline) if n]
        yield Problem(
            path=("batch", "accumulation"),
            message=f"accumulation={micro_batches} is not a multiple of pipeline={parallel.pipeline}, which the "
            "interleaved schedule needs",
            hint=f"use accumulation {' or '.join(map(str, nearest))}",
            code="interleaved-micro-batches",
        )


def _valid_tensor(model: InlineModel) -> str:
    return ", ".join(
        str(n)
        for n in range(1, model.num_kv_heads + 1)
        if model.num_kv_heads % n == 0 and model.num_heads % n == 0 and model.ffn_hidden_size % n == 0
    )


def _divisors(value: int) -> str:
    return ", ".join(str(n) for n in range(1, value + 1) if value % n == 0)
