"""Model states of a stage when adapters freeze the base, and of what adapters, heads and the mixture add."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from llama_scale.layout.parameters import Parameter
from llama_scale.plan.memory import ModelStates, StageMemory, element_bytes, model_states
from llama_scale.plan.stages import Chunk
from llama_scale.plan.topology import Topology
from llama_scale.spec.adapters import mixed_adapters
from llama_scale.spec.engine import DeepSpeedEngine, Engine
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
    memory: StageMemory,
    extra: ExtraNumel,
    *,
    base_trainable: bool,
    engine: Engine,
    precision: Precision,
    topology: Topology,
) -> StageMemory:
    """Return a stage's memory less what freezing the base saves, and with what plugins add (in fp32).

    Args:
        memory: One rank's memory when the whole base is trained and nothing is added.
        extra: What plugins add to the rank.
        base_trainable: False: the base has weights only.
        engine: Engine and its sharding.
        precision: Number formats of the base.
        topology: Degrees.
    """
    base = memory.states
    if not base_trainable:
        base = _frozen(base, memory.parameters, engine=engine, precision=precision)
    added = model_states(
        extra.trained,
        engine=engine,
        precision=Precision(compute="fp32"),
        dp_size=topology.dp_size,
        pp_size=topology.pp_size,
    )
    parts = (base, added, _weights_only(_FP32_BYTES * extra.constant))
    states = ModelStates(**{f.name: sum(getattr(part, f.name) for part in parts) for f in fields(ModelStates)})
    return replace(
        memory,
        parameters=memory.parameters + extra.trained + extra.constant,
        states=states,
        total=memory.total + _on_device(states) - _on_device(memory.states),
    )


def _on_device(states: ModelStates) -> int:
    return states.weights + states.gradients + states.masters + states.moments + states.buffers


def _weights_only(weights: int) -> ModelStates:
    return ModelStates(weights=weights, gradients=0, masters=0, moments=0, buffers=0, host=0)


def _frozen(base: ModelStates, numel: int, *, engine: Engine, precision: Precision) -> ModelStates:
    """Return the states of a base without gradients and optimizer: ZeRO-3 still divides its weights."""
    if isinstance(engine, DeepSpeedEngine) and engine.zero == 3:
        return ModelStates(
            weights=base.weights,
            gradients=0,
            masters=0,
            moments=0,
            buffers=base.buffers,
            host=base.host if engine.offload_parameters is not None else 0,
        )
    return _weights_only(element_bytes(precision) * numel)
