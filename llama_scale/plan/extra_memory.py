"""Model states of a stage when adapters freeze the base, and of what adapters, heads and the mixture add."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from llama_scale.layout.parameters import Parameter
from llama_scale.plan.memory import ModelStates, StageMemory, model_states
from llama_scale.plan.stages import Chunk
from llama_scale.plan.topology import Topology
from llama_scale.spec.adapters import mixed_adapters
from llama_scale.spec.engine import Engine
from llama_scale.spec.precision import Precision

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec

_FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraNumel:
    """Parameter elements that plugins add to one rank of a stage.

    Args:
        trained: Those that training updates.
        constant: Those that stay as initialised.
    """

    trained: int = 0
    constant: int = 0


def stage_extra(extra: Iterable[Parameter], chunks: Iterable[Chunk], *, tp_size: int) -> ExtraNumel:
    """Return what one tensor parallel rank of a stage with these chunks holds."""
    chunks = tuple(chunks)
    layers = {layer for chunk in chunks for layer in chunk.layers}
    has_head = any(chunk.has_head for chunk in chunks)
    numel = {True: 0, False: 0}
    for parameter in extra:
        if parameter.layer in layers if parameter.place == "layer" else has_head:
            numel[parameter.trainable] += parameter.numel // (1 if parameter.tp_dim is None else tp_size)
    return ExtraNumel(trained=numel[True], constant=numel[False])


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
    memory: StageMemory, extra: ExtraNumel, *, engine: Engine, topology: Topology, untouched_free: bool
) -> StageMemory:
    """Return a stage's memory with what plugins add, in fp32.

    Args:
        memory: One rank's memory without it.
        extra: What plugins add to the rank.
        engine: Engine and its sharding.
        topology: Degrees.
        untouched_free: See ``memory.model_states``.
    """
    added = model_states(
        extra.trained,
        engine=engine,
        precision=Precision(compute="fp32"),
        dp_size=topology.dp_size,
        pp_size=topology.pp_size,
        untouched_free=untouched_free,
    )
    added = replace(added, weights=added.weights + _FP32_BYTES * extra.constant)
    states = ModelStates(
        **{f.name: getattr(memory.states, f.name) + getattr(added, f.name) for f in fields(ModelStates)}
    )
    return replace(
        memory,
        parameters=memory.parameters + extra.trained + extra.constant,
        states=states,
        total=memory.total + _on_device(added),
    )


def _on_device(states: ModelStates) -> int:
    return states.weights + states.gradients + states.masters + states.moments + states.buffers
