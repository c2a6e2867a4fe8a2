"""Model states of a stage when adapters freeze the base, and of what adapters, heads and the mixture add."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from llama_scale.layout.parameters import Parameter
from llama_scale.plan.buckets import parameter_shards
from llama_scale.plan.memory import ModelStates, StageMemory, model_states, zero_stage
from llama_scale.plan.parameters import RankParameter
from llama_scale.plan.stages import Chunk
from llama_scale.plan.topology import Topology
from llama_scale.plan.zero_shards import zero_shards
from llama_scale.spec.adapters import mixed_adapters
from llama_scale.spec.engine import DeepSpeedEngine, Engine, MegatronEngine
from llama_scale.spec.precision import Precision

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec

_FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StageExtra:
    """What plugins add to one rank of a stage.

    Args:
        trained: Tensors that training updates, in the modules' order.
        constant: Elements that stay as initialised.
    """

    trained: tuple[RankParameter, ...] = ()
    constant: int = 0

    @property
    def numel(self) -> int:
        """Elements that training updates."""
        return sum(parameter.numel for parameter in self.trained)


def stage_extra(
    extra: Sequence[Parameter], chunks: Sequence[Chunk], *, tp_size: int, base_trainable: bool, fills: bool = False
) -> StageExtra:
    """Return what one tensor parallel rank of a stage with these chunks holds.

    Args:
        extra: What plugins add to the model.
        chunks: The stage's chunks.
        tp_size: Tensor parallel ranks.
        base_trainable: False: a chunk in which nothing trains has one number that does (an anchor of backward passes).
        fills: DeepSpeed's pipeline: a stage without a matrix or without a vector that trains has one of one element.
    """
    trained: list[RankParameter] = []
    constant = 0
    for virtual_rank, chunk in enumerate(chunks):
        mine = [p for layer in chunk.layers for p in extra if p.layer == layer]
        mine += [p for p in extra if p.layer is None] if chunk.has_head else []
        constant += sum(_local(p, tp_size) for p in mine if not p.trainable)
        found = [_rank_parameter(p, tp_size, virtual_rank) for p in mine if p.trainable]
        if not found and not base_trainable:
            found = [_one("anchor", virtual_rank, vector=True)]
        trained += found
    if fills and not base_trainable:
        present = {parameter.replicated for parameter in trained}
        trained += [_one("filler", 0, vector=vector) for vector in (False, True) if vector not in present]
    return StageExtra(trained=tuple(trained), constant=constant)


def _local(parameter: Parameter, tp_size: int) -> int:
    return parameter.numel // (1 if parameter.tp_dim is None else tp_size)


def _rank_parameter(parameter: Parameter, tp_size: int, virtual_rank: int) -> RankParameter:
    # Optimizers have matrices in one group and vectors in another; of the base, vectors are what is replicated.
    vector = len(parameter.shape) < 2
    numel = _local(parameter, tp_size)
    return RankParameter(
        name=parameter.name, numel=numel, replicated=vector, tied_copy=False, virtual_rank=virtual_rank
    )


def _one(name: str, virtual_rank: int, *, vector: bool) -> RankParameter:
    return RankParameter(name=name, numel=1, replicated=vector, tied_copy=False, virtual_rank=virtual_rank)


def first_trained_layer(extra: Iterable[Parameter], num_layers: int) -> int:
    """Return the first layer that a frozen base's adapters train in; ``num_layers`` if only heads train."""
    return min((p.layer for p in extra if p.trainable and p.layer is not None), default=num_layers)


def mixture_copies(spec: RunSpec) -> int:
    """Return the rows that a training step makes of one sample in adapted layers (``train/mixture_rows.py``)."""
    mixture = spec.mixture
    if mixture is None:
        return 1
    adapters = 1 if mixture.objective == "per_task" else len(mixed_adapters(spec.adapters, mixture))
    return adapters + (mixture.weights == "gate")


def with_extra(
    memory: StageMemory, extra: StageExtra, *, engine: Engine, topology: Topology, untouched_free: bool
) -> StageMemory:
    """Return a stage's memory with what plugins add, in fp32.

    Args:
        memory: One rank's memory without it.
        extra: What plugins add to the rank.
        engine: Engine and its sharding.
        topology: Degrees.
        untouched_free: See ``memory.model_states``.
    """
    dp_size = topology.dp_size
    shards = zero = None
    if isinstance(engine, MegatronEngine) and engine.distributed_optimizer:
        split = engine.overlap_grad_reduce and memory.pp_rank == 0
        shards = parameter_shards(extra.trained, dp_size=dp_size, split=split)
    elif isinstance(engine, DeepSpeedEngine) and (stage := zero_stage(engine, pp_size=topology.pp_size)):
        zero = zero_shards(extra.trained, stage=stage, dp_size=dp_size, persistence=engine.persistence_elements)
    added = model_states(
        extra.numel,
        engine=engine,
        precision=Precision(compute="fp32"),
        dp_size=dp_size,
        pp_size=topology.pp_size,
        shards=shards,
        zero=zero,
        untouched_free=untouched_free,
    )
    added = replace(added, weights=added.weights + _FP32_BYTES * extra.constant)
    states = ModelStates(
        **{f.name: getattr(memory.states, f.name) + getattr(added, f.name) for f in fields(ModelStates)}
    )
    return replace(
        memory,
        parameters=memory.parameters + extra.numel + extra.constant,
        states=states,
        total=memory.total + _on_device(added),
    )


def _on_device(states: ModelStates) -> int:
    return states.weights + states.gradients + states.masters + states.moments + states.buffers
