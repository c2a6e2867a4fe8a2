"""Correct predictions by measurements: one factor a kind of cost, close to a common one where these say little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

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
"""Weight of a factor's distance from the common one, against one measured layout: 30% of it costs as much as 2%."""

_ROUNDS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Factors on the parts of a predicted step.

    Args:
        factors: Kind of cost -> factor, no less than zero.
        spread: Typical relative error of corrected predictions over the measured layouts.
    """

    factors: Mapping[str, float]
    spread: float

    def seconds(self, step: StepTime) -> float:
        """Return the corrected time of a predicted step."""
        return sum(factor * size for factor, size in zip(self.factors.values(), grouped(step), strict=True))


IDENTITY = Correction(factors=dict.fromkeys(GROUPS, 1.0), spread=0.5)
"""Predictions as they are."""


def grouped(step: StepTime) -> tuple[float, ...]:
    """Return a step's seconds by kind of cost."""
    return tuple(sum(getattr(step, part) for part in parts) for parts in GROUPS.values())


def fit_correction(measured: Sequence[tuple[StepTime, float]]) -> Correction:
    """Find the factors by least squares of relative errors, none negative, each pulled to the common factor.

    Args:
        measured: Predicted step and measured seconds of each layout; the identity without any.
    """
    if not measured:
        return IDENTITY
    common = median(seconds / step.total for step, seconds in measured)
    # Rows in units of what was measured and of the common factor: the wanted right-hand side is 1, each factor near 1.
    rows = [[common * size / seconds for size in grouped(step)] for step, seconds in measured]
    factors = [1.0] * len(GROUPS)
    for _ in range(_ROUNDS):
        for index in range(len(factors)):
            gain = lean = 0.0
            for row in rows:
                rest = 1.0 - sum(f * size for j, (f, size) in enumerate(zip(factors, row, strict=True)) if j != index)
                gain += row[index] * rest
                lean += row[index] ** 2
            factors[index] = max(0.0, (gain + _PULL) / (lean + _PULL))
    errors = sorted(abs(sum(f * size for f, size in zip(factors, row, strict=True)) - 1.0) for row in rows)
    # A few layouts fit almost exactly whatever is true of the others.
    spread = max(errors[(2 * len(errors)) // 3 if len(errors) > 1 else 0], 0.5 / len(rows))
    return Correction(
        factors={name: common * factor for name, factor in zip(GROUPS, factors, strict=True)}, spread=spread
    )
