"""In which order a pipeline stage computes its micro-batches, and what the order costs in idle time and memory.

The orders are Megatron-Core's: 1F1B (also DeepSpeed's ``TrainSchedule``) and the interleaved schedule of Narayanan et
al. 2021 (arXiv:2104.04473, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llama_scale.plan.stages import Stages
from llama_scale.plan.workload import Frozen

ScheduleKind = Literal["no-pipeline", "1f1b", "interleaved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One pass of one micro-batch through one model chunk.

    Args:
        backward: Backward pass; else forward.
        micro_batch: Number of the micro-batch within the step.
        virtual_rank: The chunk of this stage.
    """

    backward: bool
    micro_batch: int
    virtual_rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOp:
    """An op with its place on the simulated clock (units: see :func:`simulate`)."""

    op: Op
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Summarise the pipeline schedule of one step.

    Args:
        kind: Order of passes.
        micro_batches: Micro-batches per step and replica.
        bubble_fraction: Idle time of a stage over its busy time, t_pb / t_id of Narayanan et al. 2021.
        idle_share: Idle time of a stage over the whole step: bubble / (1 + bubble).
        in_flight: For each stage, micro-batches whose activations it holds at its peak (chunks / virtual stages).
    """

    kind: ScheduleKind
    micro_batches: int
    bubble_fraction: float
    idle_share: float
    in_flight: tuple[float, ...]


def bubble_fraction(*, pp_size: int, micro_batches: int, vp_size: int = 1) -> float:
    """Return idle time over busy time of equal stages: ``(p - 1) / (v * m)``.

    Source: Narayanan et al. 2021, arXiv:2104.04473, sections 2.2.1 (1F1B) and 2.2.2 (interleaved).
    """
    return (pp_size - 1) / (vp_size * micro_batches)


def stage_order(*, pp_rank: int, pp_size: int, micro_batches: int, vp_size: int = 1) -> tuple[Op, ...]:
    """Return the passes of one stage in the order it runs them.

    Interleaved schedules need ``micro_batches`` to be a multiple of ``pp_size`` (Megatron-Core's rule).
    """
    assert vp_size == 1 or micro_batches % pp_size == 0, "validated: interleaving needs whole groups of micro-batches"
    total = micro_batches * vp_size
    forward = [_op(k, pp_size=pp_size, vp_size=vp_size, backward=False) for k in range(total)]
    backward = [_op(k, pp_size=pp_size, vp_size=vp_size, backward=True) for k in range(total)]
    warmup = min(total, warmup_passes(pp_rank=pp_rank, pp_size=pp_size, vp_size=vp_size))
    ops = forward[:warmup]
    for k in range(warmup, total):
        ops += (forward[k], backward[k - warmup])
    return (*ops, *backward[total - warmup :])


def warmup_passes(*, pp_rank: int, pp_size: int, vp_size: int) -> int:
    """Return the forward passes a stage runs before its first backward pass may follow a forward pass.

    Source: Megatron-Core ``pipeline_parallel/schedules.py:get_pp_rank_microbatches``.
    """
    if vp_size == 1:
        return pp_size - pp_rank - 1
    return (pp_size - pp_rank - 1) * 2 + (vp_size - 1) * pp_size


def _op(index: int, *, pp_size: int, vp_size: int, backward: bool) -> Op:
    """Return the index-th pass: groups of pp_size micro-batches visit chunk after chunk."""
    if vp_size == 1:
        return Op(backward=backward, micro_batch=index, virtual_rank=0)
    group, within = divmod(index, pp_size * vp_size)
    virtual_rank, member = divmod(within, pp_size)
    return Op(
        backward=backward,
        micro_batch=group * pp_size + member,
        virtual_rank=vp_size - 1 - virtual_rank if backward else virtual_rank,
    )


def peak_held(order: Sequence[Op], *, chunk_cost: Sequence[float]) -> float:
    """Return the largest sum of ``chunk_cost`` over the passes that are forward done, backward not yet."""
    held = peak = 0.0
    for op in order:
        held += -chunk_cost[op.virtual_rank] if op.backward else chunk_cost[op.virtual_rank]
        peak = max(peak, held)
    return peak


def steady_order(*, pp_rank: int, pp_size: int, micro_batches: int, vp_size: int = 1) -> tuple[Op, ...]:
    """Return an order with the same peak of held activations as the full one, short for any number of micro-batches.

    The warm-up ends within two groups of pp_size micro-batches and the order then repeats itself group by group.
    """
    return stage_order(pp_rank=pp_rank, pp_size=pp_size, micro_batches=min(micro_batches, 4 * pp_size), vp_size=vp_size)


def simulate(
    *,
    micro_batches: int,
    forward_time: Sequence[Sequence[float]],
    backward_time: Sequence[Sequence[float]] | None = None,
) -> tuple[tuple[TimedOp, ...], ...]:
    """Run a step on a clock: every pass starts when its stage is free and its input is there.

    Args:
        micro_batches: Micro-batches of the step.
        forward_time: Duration of one forward pass, ``[pp_rank][virtual_rank]``, in any unit.
        backward_time: Duration of one backward pass; None: twice that of the forward pass.

    Returns:
        For each stage its passes with start and end, in the given unit; transfers take no time.
    """
    pp_size, vp_size = len(forward_time), len(forward_time[0])
    times = forward_time, backward_time or _twice(forward_time)
    orders = [
        stage_order(pp_rank=p, pp_size=pp_size, micro_batches=micro_batches, vp_size=vp_size) for p in range(pp_size)
    ]
    last = pp_size * vp_size - 1
    ready: dict[tuple[bool, int, int], float] = {}
    clocks = [0.0] * pp_size
    timelines: list[list[TimedOp]] = [[] for _ in range(pp_size)]
    waiting = set(range(pp_size))
    while waiting:
        progress = False
        for p in sorted(waiting):
            while len(timelines[p]) < len(orders[p]):
                op = orders[p][len(timelines[p])]
                virtual = op.virtual_rank * pp_size + p
                needs = _input_of(op, virtual=virtual, last=last)
                if needs is not None and needs not in ready:
                    break
                start = max(clocks[p], ready[needs] if needs is not None else 0.0)
                clocks[p] = start + times[op.backward][p][op.virtual_rank]
                ready[(op.backward, virtual, op.micro_batch)] = clocks[p]
                timelines[p].append(TimedOp(op=op, start=start, end=clocks[p]))
                progress = True
            else:
                waiting.discard(p)
        assert progress, "the pipeline schedule waits for itself"
    return tuple(tuple(line) for line in timelines)


def _input_of(op: Op, *, virtual: int, last: int) -> tuple[bool, int, int] | None:
    """Name the pass whose result this one needs; None for the first forward pass of a micro-batch."""
    if not op.backward:
        return (False, virtual - 1, op.micro_batch) if virtual else None
    return (True, virtual + 1, op.micro_batch) if virtual < last else (False, virtual, op.micro_batch)


def _twice(times: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[2.0 * time for time in stage] for stage in times]


def simulated_bubble(
    *,
    micro_batches: int,
    forward_time: Sequence[Sequence[float]],
    backward_time: Sequence[Sequence[float]] | None = None,
) -> float:
    """Return the simulated step's length over the mean busy time of its stages, less 1.

    Equals :func:`bubble_fraction` for equal stages; uneven stages wait for the slowest.
    """
    backward = backward_time or _twice(forward_time)
    timelines = simulate(micro_batches=micro_batches, forward_time=forward_time, backward_time=backward)
    length = max(line[-1].end for line in timelines)
    busy = micro_batches * (sum(map(sum, forward_time)) + sum(map(sum, backward))) / len(forward_time)
    return length / busy - 1


def pass_times(
    stages: Stages, *, frozen: Frozen | None = None, recomputes: bool = False
) -> tuple[list[list[float]], list[list[float]]]:
    """Return how long each chunk's forward and backward pass take, ``[pp_rank][virtual_rank]``, in layers.

    A backward pass takes twice as long as the forward pass: gradients of activations, and of weights where these are
    not frozen. Recomputing all layers adds a forward pass.

    Args:
        stages: The chunks.
        frozen: Where backward passes end and how many rows they have; None: the base's weights have gradients too.
        recomputes: Whole layers are computed again.
    """
    first_trained, copies = (0, 1) if frozen is None else (frozen.first_layer, frozen.copies)
    trained = [[copies * sum(n >= first_trained for n in chunk.layers) for chunk in stage] for stage in stages]
    below = [[sum(n < first_trained for n in chunk.layers) for chunk in stage] for stage in stages]
    factor = (2 if frozen is None else 1) + recomputes
    forward = [
        [float(a + b) for a, b in zip(one, other, strict=True)] for one, other in zip(trained, below, strict=True)
    ]
    return forward, [[float(factor * a) for a in one] for one in trained]


def make_schedule(
    *, micro_batches: int, forward_time: Sequence[Sequence[float]], backward_time: Sequence[Sequence[float]]
) -> Schedule:
    """Summarise one step of a pipeline whose passes take this long, ``[pp_rank][virtual_rank]``."""
    pp_size, vp_size = len(forward_time), len(forward_time[0])
    equal = all(len({time for stage in times for time in stage}) == 1 for times in (forward_time, backward_time))
    if equal:
        bubble = bubble_fraction(pp_size=pp_size, micro_batches=micro_batches, vp_size=vp_size)
    else:
        bubble = simulated_bubble(micro_batches=micro_batches, forward_time=forward_time, backward_time=backward_time)
    kind: ScheduleKind = "no-pipeline" if pp_size == 1 else "1f1b" if vp_size == 1 else "interleaved"
    in_flight = tuple(
        peak_held(
            steady_order(pp_rank=p, pp_size=pp_size, micro_batches=micro_batches, vp_size=vp_size),
            chunk_cost=[1.0] * vp_size,
        )
        / vp_size
        for p in range(pp_size)
    )
    return Schedule(
        kind=kind,
        micro_batches=micro_batches,
        bubble_fraction=bubble,
        idle_share=bubble / (1 + bubble),
        in_flight=in_flight,
    )
