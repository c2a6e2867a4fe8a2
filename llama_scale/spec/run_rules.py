"""Rules about the run over time (steps, schedule, validation) and about adapters, tasks and their mixture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llama_scale.errors import Problem
from llama_scale.spec.nearby import suggest
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
    if spec.validation is not None and spec.data.split.validation == 0:
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


def _unique(section: str, names: Sequence[str]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in first:
            yield Problem(
                path=(section, index, "name"),
                message=f"the name {name!r} is used already by {section}[{first[name]}]",
                hint="give each its own name",
                code="duplicate-name",
            )
        first.setdefault(name, index)


def _adapter_names(spec: RunSpec) -> Iterator[Problem]:
    return _unique("adapters", [adapter.name for adapter in spec.adapters])


def _task_names(spec: RunSpec) -> Iterator[Problem]:
    yield from _unique("tasks", [task.name for task in spec.tasks])
    if spec.tasks and not any(task.weight for task in spec.tasks):
        yield problem("tasks", "the weights of all tasks are 0", hint="give one a weight above 0", code="task-weights")


def _adapter_tasks(spec: RunSpec) -> Iterator[Problem]:
    names = [task.name for task in spec.tasks]
    for index, adapter in enumerate(spec.adapters):
        if adapter.task is not None and adapter.task not in names:
            yield Problem(
                path=("adapters", index, "task"),
                message=f"{adapter.task!r} is not the name of a task",
                hint=suggest(adapter.task, names) if names else "add it under tasks",
                code="unknown-task",
            )


def _mixture(spec: RunSpec) -> Iterator[Problem]:
    mixture = spec.mixture
    if mixture is not None and not spec.adapters:
        yield problem(
            "mixture",
            "a mixture needs at least one adapter, and the section adapters is empty",
            hint="add adapters, or remove the section mixture",
            code="mixture-adapters",
        )


def _gate(spec: RunSpec) -> Iterator[Problem]:
    mixture = spec.mixture
    if mixture is None or mixture.weights == "gate":
        return
    for key in ("gate", "gate_options"):
        if getattr(mixture, key):
            yield problem(
                f"mixture.{key}",
                f"{key} is given, but weights: {mixture.weights} has no gate",
                hint=f"set weights to gate, or remove {key}",
                code="mixture-gate",
            )


RULES = (
    Rule(("train",), _length),
    Rule(("train", "schedule"), _schedule),
    Rule(("validation", "data"), _validation),
    Rule(("checkpoint", "validation"), _keep_best),
    Rule(("adapters",), _adapter_names),
    Rule(("tasks",), _task_names),
    Rule(("adapters", "tasks"), _adapter_tasks),
    Rule(("mixture", "adapters"), _mixture),
    Rule(("mixture",), _gate),
)
"""All rules of this file."""
