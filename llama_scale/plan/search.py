"""Find the best layout: predict every allowed one and rank them, with the reason why the others lose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from llama_scale.plan.communication import make_fabric
from llama_scale.plan.constants import DEFAULT, Constants
from llama_scale.plan.frozen_base import spec_extra, spec_frozen
from llama_scale.plan.hardware import Hardware
from llama_scale.plan.kernels import make_device
from llama_scale.plan.run_memory import RunMemory, run_memory
from llama_scale.plan.search_space import Candidate, candidates
from llama_scale.plan.spec_workload import (
    engine_sharding,
    engine_software,
    recomputed_share,
    spec_dimensions,
    spec_precision,
)
from llama_scale.plan.step_time import LayerTimer, PassTimes, StepTime, make_timer, step_time
from llama_scale.plan.workload import Dimensions, Frozen, Parallelism, Workload

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec

Objective = Literal["tokens", "cost", "memory"]

_GIB = float(1 << 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """One layout and what is predicted of it.

    Args:
        candidate: Its sections.
        devices: Accelerators.
        step: Step time by part.
        tokens_per_s: Tokens a second of the run.
        memory: Memory of its fullest rank.
        reason: Why it is not the best; empty for the best.
    """

    candidate: Candidate
    devices: int
    step: StepTime
    tokens_per_s: float
    memory: RunMemory
    reason: str = ""

    @property
    def tokens_per_s_per_device(self) -> float:
        """Tokens a second of one device."""
        return self.tokens_per_s / self.devices


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """All layouts, best first.

    Args:
        ranked: Those that fit, best first, then those that do not, by how little they overflow.
        fitting: How many fit.
    """

    ranked: tuple[Ranked, ...]
    fitting: int


def search(
    spec: RunSpec,
    *,
    hardware: Hardware,
    devices: int,
    devices_per_node: int,
    objective: Objective = "tokens",
    constants: Constants = DEFAULT,
) -> SearchResult:
    """Rank all allowed layouts of a resolved spec.

    Args:
        spec: Model, data, global batch and precision; its own layout does not matter.
        hardware: The accelerator.
        devices: How many there are; with ``objective="cost"`` also halves of it down to one node are tried.
        devices_per_node: Devices of a host.
        objective: ``tokens``: most tokens a second; ``cost``: fewest device hours a token; ``memory``: least memory.
        constants: The model's constants.
    """
    found: list[Ranked] = []
    for count in _device_counts(devices, devices_per_node, objective):
        found += _predict_all(
            spec, hardware=hardware, devices=count, devices_per_node=min(count, devices_per_node), constants=constants
        )
    fitting = [one for one in found if one.memory.fits]
    rest = [one for one in found if not one.memory.fits]
    fitting.sort(key=lambda one: _rank_key(one, objective))
    rest.sort(key=lambda one: one.memory.used)
    return SearchResult(ranked=(*fitting, *rest), fitting=len(fitting))


def with_reasons(result: SearchResult, *, top: int, objective: Objective) -> tuple[Ranked, ...]:
    """Return the first ``top`` layouts, each with the reason why it loses against the best."""
    best = result.ranked[0] if result.fitting else None
    return tuple(_with_reason(one, best=best, objective=objective) for one in result.ranked[:top])


def _device_counts(devices: int, devices_per_node: int, objective: Objective) -> Iterator[int]:
    yield devices
    while objective == "cost" and devices % 2 == 0 and devices // 2 >= devices_per_node:
        devices //= 2
        yield devices


def _rank_key(one: Ranked, objective: Objective) -> tuple[float, ...]:
    if objective == "memory":
        return one.memory.used, -one.tokens_per_s
    if objective == "cost":
        return -one.tokens_per_s_per_device, one.memory.used
    return -one.tokens_per_s, one.memory.used


def _predict_all(
    spec: RunSpec, *, hardware: Hardware, devices: int, devices_per_node: int, constants: Constants
) -> Iterator[Ranked]:
    timer: LayerTimer | None = None
    build = _Builder(spec, hardware=hardware, devices_per_node=devices_per_node)
    for candidate in candidates(spec, devices=devices, devices_per_node=devices_per_node):
        workload = build.workload(candidate)
        if timer is None:
            timer = _remembering(workload, constants=constants)
        step = step_time(workload, constants=constants, timer=timer)
        yield Ranked(
            candidate=candidate,
            devices=devices,
            step=step,
            tokens_per_s=workload.global_batch * workload.seq_length / step.total,
            memory=run_memory(workload, constants=constants),
        )


class _Builder:
    """Makes workloads of candidates; what does not change is computed once."""

    def __init__(self, spec: RunSpec, *, hardware: Hardware, devices_per_node: int) -> None:
        self._spec, self._hardware, self._node = spec, hardware, devices_per_node
        self._models: dict[int, tuple[Dimensions, Frozen | None]] = {}
        self._extra = spec_extra(spec)
        self._precision = spec_precision(spec)
        self._gradients = 2 if spec.precision.gradients == "bf16" else 4

    def workload(self, candidate: Candidate) -> Workload:
        """Return the workload of a candidate."""
        parallel = candidate.parallel
        engine: Any = candidate.engine
        recompute: Any = candidate.recompute
        tp = parallel.tensor
        if tp not in self._models:
            frozen = spec_frozen(self._spec, self._extra, tp_size=tp)
            self._models[tp] = spec_dimensions(self._spec, tp_size=tp), frozen
        model, frozen = self._models[tp]
        return Workload(
            model=model,
            parallel=Parallelism(
                dp=parallel.data,
                tp=tp,
                pp=parallel.pipeline,
                vp=parallel.virtual_stages,
                sharding=engine_sharding(engine, pp_size=parallel.pipeline),
                sequence=parallel.sequence,
                recompute=recompute.kind,
                recompute_layers=recomputed_share(
                    recompute,
                    stage_layers=parallel.stage_layers,
                    chunks=parallel.pipeline * parallel.virtual_stages,
                    layers=model.layers,
                ),
                stage_layers=parallel.stage_layers,
            ),
            software=engine_software(
                engine,
                pp_size=parallel.pipeline,
                gradient_bytes=self._gradients if frozen is None else 4,
                on_cpu=self._spec.cluster.device == "cpu",
            ),
            hardware=self._hardware,
            devices_per_node=self._node,
            precision=self._precision,
            seq_length=self._spec.data.seq_length,
            micro_batch=candidate.batch.micro,
            global_batch=candidate.batch.global_,
            frozen=frozen,
        )


def _remembering(workload: Workload, *, constants: Constants) -> LayerTimer:
    """Return a timer that computes each distinct layer once."""
    device = make_device(workload.hardware, precision=workload.precision, constants=constants)
    plain = make_timer(device, make_fabric(workload, constants=constants))
    known: dict[tuple[int, int, bool, bool], PassTimes] = {}

    def timer(one: Workload) -> PassTimes:
        key = (one.micro_batch, one.parallel.tp, one.parallel.sequence, one.software.overlap_tp)
        if key not in known:
            known[key] = plain(one)
        return known[key]

    return timer


def _with_reason(one: Ranked, *, best: Ranked | None, objective: Objective) -> Ranked:
    if not one.memory.fits:
        over = (one.memory.used - one.memory.capacity) / _GIB
        reason = f"OOM on stage {one.memory.stage} by {over:.1f} GiB"
    elif best is None or one is best:
        reason = ""
    elif objective == "memory":
        reason = f"{(one.memory.used - best.memory.used) / _GIB:.1f} GiB more"
    else:
        reason = _slower(one, best)
    return Ranked(
        candidate=one.candidate,
        devices=one.devices,
        step=one.step,
        tokens_per_s=one.tokens_per_s,
        memory=one.memory,
        reason=reason,
    )


_NAMES = {
    "gemm": "smaller GEMMs",
    "tensor": "exposed tensor traffic",
    "data": "exposed data traffic",
    "transfers": "exposed sends",
    "head": "output layer",
    "launch": "kernel launches",
    "recompute": "recomputation",
}


def _slower(one: Ranked, best: Ranked) -> str:
    """Name the part of the step that costs most more than in the best layout, in percent of the best's step."""
    scale = best.devices / one.devices
    more = {
        field.name: getattr(one.step, field.name) / scale - getattr(best.step, field.name) for field in fields(one.step)
    }
    part = max(more, key=lambda name: more[name])
    if more[part] <= 0:
        return "more memory at the same speed"
    return f"{_NAMES.get(part, part)} +{more[part] / best.step.total:.1%}"
