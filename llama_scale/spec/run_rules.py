"""Rules about the run over time: steps, schedule, validation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llama_scale.errors import Problem
from llama_scale.spec.rule import Rule, problem

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec


def _length(spec: RunSpec) -> Iterator[Problem]:
    train = spec.train
    if train.steps is None and train.tokens is None:
        yield problem(
            "train", "one of steps and tokens is needed; neither is given", hint="add steps: N", code="train-length"
        )
    elif train.steps is not None and train.tokens is not None:
        yield problem(
            "train",
            f"steps={train.steps} and tokens={train.tokens} are both given; exactly one sets the length",
            hint="remove one of them",
            code="train-length",
        )


def _schedule(spec: RunSpec) -> Iterator[Problem]:
    steps, schedule = spec.train.steps, spec.schedule
    if steps is None:
        return  # reported by the rule on length, or the tokens could not be resolved
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
