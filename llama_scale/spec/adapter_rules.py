"""Rules about adapters, tasks and their mixture that need no plugin: names, who serves whom, what trains on what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llama_scale.errors import Problem
from llama_scale.spec.nearby import suggest
from llama_scale.spec.rule import Rule, problem

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec


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


def _mixed(spec: RunSpec) -> Iterator[Problem]:
    """Which adapters are mixed."""
    mixture = spec.mixture
    if mixture is None or not mixture.adapters:
        return
    names = [adapter.name for adapter in spec.adapters]
    for index, name in enumerate(mixture.adapters):
        if name not in names:
            yield Problem(
                path=("mixture", "adapters", index),
                message=f"{name!r} is not the name of an adapter",
                hint=suggest(name, names) if names else "add it under adapters",
                code="mixture-unknown-adapter",
            )
        elif mixture.adapters.index(name) != index:
            yield Problem(
                path=("mixture", "adapters", index),
                message=f"adapter {name!r} is named twice",
                hint="name each adapter once",
                code="duplicate-name",
            )
    if mixture.objective != "per_task":
        yield problem(
            "mixture.adapters",
            f"objective: {mixture.objective} sends every row through all adapters, so none can stay outside",
            hint="remove mixture.adapters, or use objective: per_task",
            code="mixture-part",
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


def _mixes_rows(spec: RunSpec) -> bool:
    """Tell whether every row goes through all adapters."""
    return spec.mixture is not None and spec.mixture.objective != "per_task"


def _serving(spec: RunSpec) -> Iterator[Problem]:
    """One adapter a task, where each adapter trains on its own task's rows."""
    if not spec.tasks or not spec.adapters or _mixes_rows(spec):
        return
    served = [adapter.task for adapter in spec.adapters]
    names = [task.name for task in spec.tasks]
    for index, adapter in enumerate(spec.adapters):
        if adapter.task is None:
            yield Problem(
                path=("adapters", index),
                message=f"adapter {adapter.name!r} names no task, so no rows would train it",
                hint=f"add task: {names[0]}, or train all adapters on all rows with mixture: {{objective: joint}}",
                code="adapter-task",
            )
        elif (first := served.index(adapter.task)) != index:
            yield Problem(
                path=("adapters", index, "task"),
                message=f"task {adapter.task!r} is served by adapters[{first}] already; a task's rows go through one "
                "adapter",
                hint="give it a task of its own, or train all adapters on all rows with mixture: {objective: joint}",
                code="adapter-task",
            )
    for index, name in enumerate(names):
        if name not in served:
            yield Problem(
                path=("tasks", index),
                message=f"no adapter serves task {name!r}: the base is frozen, so its rows would train nothing",
                hint=f"add an adapter with task: {name}, or remove all adapters to train the whole model",
                code="task-adapter",
            )


def _several_without_tasks(spec: RunSpec) -> Iterator[Problem]:
    if len(spec.adapters) > 1 and not spec.tasks and not _mixes_rows(spec):
        yield problem(
            "adapters",
            f"{len(spec.adapters)} adapters and no tasks: nothing tells which rows train which adapter",
            hint="add tasks, keep one adapter, or train all on all rows with mixture: {objective: joint} or em",
            code="adapters-without-tasks",
        )


def _task_data(spec: RunSpec) -> Iterator[Problem]:
    kind: str = spec.data.kind
    if spec.tasks and kind != "tasks":
        yield problem(
            "data.kind",
            f"kind: {kind} with tasks: the rows come from the tasks' own files",
            hint="write data: {kind: tasks, seq_length: N}",
            code="task-data",
        )
    elif kind == "tasks" and not spec.tasks:
        yield problem(
            "tasks",
            "data.kind is tasks, and the section tasks is empty",
            hint="add tasks, or use kind: indexed",
            code="task-data",
        )


RULES = (
    Rule(("adapters",), _adapter_names),
    Rule(("tasks",), _task_names),
    Rule(("adapters", "tasks"), _adapter_tasks),
    Rule(("adapters", "tasks", "mixture"), _serving),
    Rule(("adapters", "tasks", "mixture"), _several_without_tasks),
    Rule(("tasks", "data"), _task_data),
    Rule(("mixture", "adapters"), _mixture),
    Rule(("mixture", "adapters"), _mixed),
    Rule(("mixture",), _gate),
)
"""All rules of this file."""
