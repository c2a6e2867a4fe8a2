"""The plan of a run: everything that follows from its spec, as one value that is written to ``plan.json``."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from llama_scale.errors import Problem, SpecError
from llama_scale.layout.parameters import Parameter, iter_parameters
from llama_scale.plan.activations import ActivationCase
from llama_scale.plan.extensions import extra_parameters
from llama_scale.plan.extra_memory import first_trained_layer, stage_extra, with_extra
from llama_scale.plan.frozen_base import spec_frozen
from llama_scale.plan.memory import StageMemory, element_bytes, stage_memory
from llama_scale.plan.schedule import Schedule, make_schedule, pass_times
from llama_scale.plan.stages import Stages, make_stages
from llama_scale.plan.topology import Topology
from llama_scale.plan.workload import Frozen
from llama_scale.spec.model import InlineModel, ModelShape
from llama_scale.spec.run import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Batch sizes of one step.

    Args:
        global_batch: Samples per optimizer step over all replicas.
        micro_batch: Samples per forward pass.
        accumulation: Micro-batches per step and replica.
        seq_length: Tokens per sample.
    """

    global_batch: int
    micro_batch: int
    accumulation: int
    seq_length: int

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.global_batch * self.seq_length


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """Who computes what, in which order, with how much memory.

    Args:
        name: Name of the run.
        spec_digest: SHA-256 of the resolved spec.
        engine: Kind of the engine.
        nodes: Hosts.
        devices_per_node: Processes of one host.
        shape: The model.
        vocab_pad_multiple: The vocabulary is padded to a multiple of this times tp.
        topology: Mesh of processes.
        stages: Model chunks, ``[pp_rank][virtual_rank]``.
        batch: Batch sizes.
        steps: Optimizer steps of the run.
        memory: One rank's bytes, stage by stage.
        schedule: The pipeline's schedule.
        extra: Parameters that adapters, task heads and the mixture add to the base's table.
        base_trainable: Whether training updates the base; adapters freeze it.
        copies: Rows that a mixture makes of one sample in the layers from the first adapter on.
    """

    name: str
    spec_digest: str
    engine: str
    nodes: int
    devices_per_node: int
    shape: ModelShape
    vocab_pad_multiple: int
    topology: Topology
    stages: Stages
    batch: BatchPlan
    steps: int
    memory: tuple[StageMemory, ...]
    schedule: Schedule
    extra: tuple[Parameter, ...] = ()
    base_trainable: bool = True
    copies: int = 1

    def all_parameters(self) -> Iterator[Parameter]:
        """Yield the base's parameters, then what extensions add, each once."""
        yield from iter_parameters(self.shape)
        yield from self.extra

    def trains(self, parameter: Parameter) -> bool:
        """Tell whether training updates a parameter; what it does not is in no checkpoint of the run."""
        return self.base_trainable if parameter.owner == "base" else parameter.trainable

    @property
    def first_trained(self) -> int:
        """The lowest layer that backward passes go through; as many as there are layers if only heads train."""
        return 0 if self.base_trainable else first_trained_layer(self.extra, self.shape.num_layers)

    @property
    def frozen(self) -> Frozen | None:
        """How far backward passes go and how many rows they have; None if the base trains."""
        return None if self.base_trainable else Frozen(first_layer=self.first_trained, copies=self.copies)

    def pass_times(self, *, recomputes: bool = False) -> tuple[list[list[float]], list[list[float]]]:
        """Return how long each chunk's forward and backward pass take, see ``schedule.pass_times``."""
        return pass_times(self.stages, frozen=self.frozen, recomputes=recomputes)

    @property
    def virtual_stages(self) -> int:
        """Model chunks of each pipeline rank."""
        return len(self.stages[0])

    def to_json(self) -> str:
        """Return the plan as JSON text that :meth:`from_json` reads back to an equal plan."""
        return _adapter().dump_json(self, indent=2).decode() + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunPlan:
        """Read a plan.

        Raises:
            SpecError: the text is no plan.
        """
        try:
            return _adapter().validate_json(text)
        except ValidationError as error:
            raise SpecError(
                [
                    Problem(
                        path=tuple(item["loc"]),
                        message=f"not a plan of llama-scale: {item['msg']}",
                        hint="write it again with `llama-scale plan SPEC --json`",
                        code="plan-format",
                    )
                    for item in error.errors()
                ]
            ) from None


@functools.cache
def _adapter() -> TypeAdapter[RunPlan]:
    return TypeAdapter(RunPlan)


def make_plan(spec: RunSpec) -> RunPlan:
    """Derive the plan of a resolved spec.

    Args:
        spec: From ``spec.load.load_spec``: inline model, all batch numbers, steps.

    Raises:
        SpecError: degrees, batch or world size do not fit; all that do not are named at once.
    """
    # lazy: a worker that reads plan.json needs no YAML reader
    from llama_scale.plan.checks import plan_problems
    from llama_scale.spec.load import spec_digest

    problems = plan_problems(spec)
    if problems:
        raise SpecError(problems)
    model = spec.model
    assert isinstance(model, InlineModel)
    stages = _stages(spec)
    shape = ModelShape.model_validate(model.model_dump(include=set(ModelShape.model_fields)))
    topology = Topology(dp_size=spec.parallel.data, tp_size=spec.parallel.tensor, pp_size=spec.parallel.pipeline)
    batch = _batch(spec)
    assert spec.train.steps is not None
    extra = extra_parameters(spec, shape)
    frozen = spec_frozen(spec, extra, tp_size=topology.tp_size)
    forward, backward = pass_times(stages, frozen=frozen)
    return RunPlan(
        name=spec.name,
        spec_digest=spec_digest(spec),
        engine=spec.engine.kind,
        nodes=spec.cluster.nodes,
        devices_per_node=spec.cluster.devices_per_node,
        shape=shape,
        vocab_pad_multiple=model.vocab_pad_multiple,
        topology=topology,
        stages=stages,
        batch=batch,
        steps=spec.train.steps,
        memory=_memory(spec, shape, stages=stages, topology=topology, batch=batch, extra=extra, frozen=frozen),
        extra=extra,
        base_trainable=not spec.adapters,
        copies=1 if frozen is None else frozen.copies,
        schedule=make_schedule(micro_batches=batch.accumulation, forward_time=forward, backward_time=backward),
    )


def _memory(
    spec: RunSpec,
    shape: ModelShape,
    *,
    stages: Stages,
    topology: Topology,
    batch: BatchPlan,
    extra: tuple[Parameter, ...],
    frozen: Frozen | None,
) -> tuple[StageMemory, ...]:
    """Return each stage's memory, first to last."""
    case = ActivationCase(
        shape=shape,
        micro_batch=batch.micro_batch,
        seq_length=batch.seq_length,
        tp_size=topology.tp_size,
        sequence_parallel=spec.parallel.sequence,
        element_bytes=element_bytes(spec.precision),
        recompute=spec.recompute,
        frozen=frozen,
    )
    on_cpu = spec.cluster.device == "cpu"
    memory = [
        stage_memory(
            case,
            stages,
            pp_rank=pp_rank,
            topology=topology,
            engine=spec.engine,
            precision=spec.precision,
            vocab_pad_multiple=spec.model.vocab_pad_multiple,
            micro_batches=batch.accumulation,
            trainable=not spec.adapters,
            untouched_free=on_cpu,
        )
        for pp_rank in range(topology.pp_size)
    ]
    if not extra and not spec.adapters:
        return tuple(memory)
    fills = spec.engine.kind == "deepspeed" and topology.pp_size > 1
    return tuple(
        with_extra(
            stage,
            stage_extra(
                extra,
                stages[stage.pp_rank],
                tp_size=topology.tp_size,
                base_trainable=not spec.adapters,
                fills=fills,
            ),
            engine=spec.engine,
            topology=topology,
            untouched_free=on_cpu,
        )
        for stage in memory
    )


def _stages(spec: RunSpec) -> Stages:
    assert isinstance(spec.model, InlineModel)
    return make_stages(
        spec.model.num_layers,
        pp_size=spec.parallel.pipeline,
        vp_size=spec.parallel.virtual_stages,
        stage_layers=spec.parallel.stage_layers,
    )


def _batch(spec: RunSpec) -> BatchPlan:
    batch = spec.batch
    assert batch.global_ is not None and batch.micro is not None and batch.accumulation is not None
    return BatchPlan(
        global_batch=batch.global_,
        micro_batch=batch.micro,
        accumulation=batch.accumulation,
        seq_length=spec.data.seq_length,
    )
