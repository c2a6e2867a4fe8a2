"""Rules about the run over time: steps, schedule, validation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llama_scale.errors import Problem
from llama_scale.spec.rule import Rule, problem

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec


def _length(spec: RunSpec) -> Iterator[Problem]:
    lengths = {"steps": spec.train.steps, "tokens": spec.train.tokens, "epochs": spec.train.epochs}
    given = [
        f"{name}={value:g}" if name == "epochs" else f"{name}={value}"
        for name, value in lengths.items()
        if value is not None
    ]
    if not given:
        yield problem(
            "train",
            "one of steps, tokens and epochs is needed; none is given",
            hint="add steps: N",
            code="train-length",
        )
    elif len(given) > 1:
        yield problem(
            "train",
            f"{' and '.join(given)} are {'both' if len(given) == 2 else 'all'} given; exactly one sets the length",
            hint="keep one of them",
            code="train-length",
        )


def _schedule(spec: RunSpec) -> Iterator[Problem]:
    steps, schedule = spec.train.steps, spec.schedule
    if steps is None:
        return  # no length or too many (another rule), tokens that could not be resolved, or rows not yet counted
    decay = schedule.decay_steps if schedule.kind == "wsd" else 0
    if schedule.warmup_steps > steps:
        yield problem(
            "schedule.warmup_steps",
            f"warmup_steps={schedule.warmup_steps} is more than the run's {steps} steps",
            hint=f"use 0 to {steps}, or train longer",
            code="schedule-warmup",
        )
    elif schedule.warmup_steps + decay > steps:
        yield problem(
            "schedule.decay_steps",
            f"warmup_steps + decay_steps = {schedule.warmup_steps} + {decay} is more than the run's {steps} steps",
            hint=f"use decay_steps <= {steps - schedule.warmup_steps}, or train longer",
            code="schedule-decay",
        )


def _validation(spec: RunSpec) -> Iterator[Problem]:
    if spec.validation is not None and spec.data.kind == "indexed" and spec.data.split.validation == 0:
        yield problem(
            "validation",
            "validation needs data, and data.split.validation is 0",
            hint="set data.split.validation above 0, or remove the section validation",
            code="validation-split",
        )


def _keep_best(spec: RunSpec) -> Iterator[Problem]:
    if spec.checkpoint.keep_best and spec.validation is None:
        yield problem(
            "checkpoint.keep_best",
            "keep_best: true needs a validation loss, and there is no section validation",
            hint="add validation: {every_steps: N}, or set keep_best to false",
            code="keep-best",
        )


RULES = (
    Rule(("train",), _length),
    Rule(("train", "schedule"), _schedule),
    Rule(("validation", "data"), _validation),
    Rule(("checkpoint", "validation"), _keep_best),
)
"""All rules of this file."""
