"""Correct predictions by measurements: a factor a kind of cost, close to a common one, and each engine's own overhead.

A predicted step has no term for what an engine does beside the model's kernels (hooks, buckets, polling of queues). It
is found here, for each engine: seconds a step, and seconds a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from llama_scale.plan.search import Ranked
from llama_scale.plan.step_time import StepTime

GROUPS: dict[str, tuple[str, ...]] = {
    "compute": ("gemm", "attention", "pointwise", "head", "recompute"),
    "launch": ("launch",),
    "tensor": ("tensor",),
    "pipeline": ("transfers", "bubble"),
    "data": ("data",),
    "optimizer": ("optimizer", "straggling"),
}
"""Kind of cost -> parts of a step that one factor corrects."""

_PULL = 0.005
"""Weight of a factor's distance from the common one, and of an overhead in typical steps, against one measured layout:
30% of it costs as much as 2%."""

_ROUNDS = 400
_ROUGH_ROUNDS = 60

_LEAST_SPREAD = 0.02
"""However well predictions seem to do, single launches differ by more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a layout's time is made of.

    Args:
        step: Predicted step.
        engine: Name of what runs it.
        micro_batches: Micro-batches of a step and replica.
    """

    step: StepTime
    engine: str = ""
    micro_batches: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What measurements say of this machine.

    Args:
        factors: Kind of cost -> factor on a predicted step's parts, no less than zero.
        spread: By what share a layout that was not measured may be faster than predicted.
        overheads: Engine -> seconds that it adds to a step, and to each micro-batch.
    """

    factors: Mapping[str, float]
    spread: float
    overheads: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def seconds(self, cost: Cost) -> float:
        """Return the corrected time of a layout; engines that were not measured take the others' mean overhead."""
        parts = _dot(list(self.factors.values()), grouped(cost.step))
        known = list(self.overheads.values())
        count = max(1, len(known))
        mean = sum(one for one, _ in known) / count, sum(one for _, one in known) / count
        each_step, each_micro = self.overheads.get(cost.engine, mean)
        return parts + each_step + each_micro * cost.micro_batches


IDENTITY = Correction(factors=dict.fromkeys(GROUPS, 1.0), spread=0.5)
"""Predictions as they are."""


def layout_cost(one: Ranked) -> Cost:
    """Return what a ranked layout's time is made of.

    DeepSpeed counts as three engines: ZeRO-3 has hooks on every module, and its pipeline engine is another program.
    """
    engine, parallel = one.candidate.engine, one.candidate.parallel
    name = str(engine.kind)
    if name == "deepspeed" and parallel.pipeline > 1:
        name = "deepspeed-pipeline"
    elif name == "deepspeed" and engine.zero == 3:
        name = "deepspeed-zero-3"
    return Cost(step=one.step, engine=name, micro_batches=one.candidate.batch.accumulation)


def grouped(step: StepTime) -> tuple[float, ...]:
    """Return a step's seconds by kind of cost."""
    return tuple(sum(getattr(step, part) for part in parts) for parts in GROUPS.values())


def fit_correction(measured: Sequence[tuple[Cost, float]]) -> Correction:
    """Find factors and overheads by least squares of relative errors, none negative.

    Args:
        measured: What each layout's time is made of, and its measured seconds; the identity without any.
    """
    if not measured:
        return IDENTITY
    fitted = _fit(measured)
    return replace(fitted, spread=_surprise(measured))


def _surprise(measured: Sequence[tuple[Cost, float]]) -> float:
    """Return by how much a layout that was not measured may be faster than its corrected prediction.

    It is the best surprise among the measured ones, each predicted by a fit to all others: with about as many constants
    as layouts, how well a fit meets what it was made from says nothing.
    """
    if len(measured) < 2:
        return IDENTITY.spread
    gains = []
    for place, (cost, seconds) in enumerate(measured):
        others = _fit([*measured[:place], *measured[place + 1 :]], rounds=_ROUGH_ROUNDS)
        gains.append(1.0 - seconds / others.seconds(cost))
    return min(IDENTITY.spread, max(_LEAST_SPREAD, *gains))


def _fit(measured: Sequence[tuple[Cost, float]], *, rounds: int = _ROUNDS) -> Correction:
    common = median(seconds / cost.step.total for cost, seconds in measured)
    typical = median(seconds for _, seconds in measured)
    passes = median(cost.micro_batches for cost, _ in measured)
    engines = sorted({cost.engine for cost, _ in measured})
    # Rows in units of what was measured, columns in units of the common factor and of a typical step: the wanted
    # right-hand side is 1, each factor is near 1 and each overhead near 0.
    rows = []
    for cost, seconds in measured:
        own = [float(cost.engine == name) * typical / seconds for name in engines]
        rows.append([
            *(common * size / seconds for size in grouped(cost.step)),
            *own,
            *(share * cost.micro_batches / passes for share in own),
        ])  # fmt: skip
    centre = [1.0] * len(GROUPS) + [0.0] * (2 * len(engines))
    solution = _least_squares(rows, centre, rounds=rounds)
    each_step, each_micro = solution[len(GROUPS) :][: len(engines)], solution[len(GROUPS) + len(engines) :]
    return Correction(
        factors={name: common * factor for name, factor in zip(GROUPS, solution, strict=False)},
        spread=IDENTITY.spread,
        overheads={
            name: (typical * one, typical * other / passes)
            for name, one, other in zip(engines, each_step, each_micro, strict=True)
        },
    )


def _least_squares(rows: Sequence[Sequence[float]], centre: Sequence[float], *, rounds: int) -> list[float]:
    """Return the x >= 0 with the least squares of ``rows @ x - 1``, each entry pulled to its centre.

    Coordinate descent from the centre: the sum never grows, so that the result is no worse than the centre.
    """
    x = list(centre)
    left = [1.0 - _dot(x, row) for row in rows]
    lean = [sum(row[index] ** 2 for row in rows) for index in range(len(x))]
    for _ in range(rounds):
        for index, pulled in enumerate(centre):
            gain = sum(row[index] * rest for row, rest in zip(rows, left, strict=True)) + lean[index] * x[index]
            value = max(0.0, (gain + _PULL * pulled) / (lean[index] + _PULL))
            if value != x[index]:
                change, x[index] = value - x[index], value
                left = [rest - change * row[index] for row, rest in zip(rows, left, strict=True)]
    return x


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
