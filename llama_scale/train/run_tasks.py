"""The tasks of a run: their implementations with options and context, and which adapter their rows go through."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llama_scale.data.task_tokenizer import TaskTokenizer
from llama_scale.extensions import discover
from llama_scale.extensions.task import Task, TaskContext

if TYPE_CHECKING:
    from llama_scale.spec.run import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTask:
    """One task of a run.

    Args:
        name: Its name in the spec.
        number: Its place there.
        kind: Its kind.
        weight: Its share of samples.
        head: ``lm`` or ``own``.
        adapter: Adapter that its rows go through; None: the base alone, or all adapters of a mixture.
        task: The implementation.
        starts_texts: See ``TaskTokenizer``.
    """

    name: str
    number: int
    kind: str
    weight: float
    head: Literal["lm", "own"]
    adapter: str | None
    task: Task
    starts_texts: bool = True


def make_tasks(spec: RunSpec, *, starts_texts: bool = True) -> list[RunTask]:
    """Load the implementations of a resolved spec's tasks; tokenizers are loaded when they are used.

    Args:
        spec: The run.
        starts_texts: See ``TaskTokenizer``.

    Raises:
        PluginError: A plugin is missing or broken.
    """
    if not spec.tasks:
        return []
    assert spec.tokenizer is not None, "a rule asks for one"
    tokenizer = TaskTokenizer(Path(spec.tokenizer.path), starts_texts=starts_texts)
    sizes = {name: getattr(spec.model, name) for name in ("hidden_size", "vocab_size", "num_layers")}
    mixed = spec.mixture is not None and spec.mixture.objective != "per_task"
    adapters = {} if mixed else {adapter.task: adapter.name for adapter in spec.adapters}
    found = []
    for number, task in enumerate(spec.tasks):
        descriptor = discover.task(task.kind)
        context = TaskContext(
            name=task.name, tokenizer=tokenizer, seq_length=spec.data.seq_length, sizes=sizes, seed=spec.seed
        )
        options = discover.read_options(descriptor, task.options)
        found.append(
            RunTask(
                name=task.name,
                number=number,
                kind=task.kind,
                weight=task.weight,
                head=descriptor.head,
                adapter=adapters.get(task.name),
                task=discover.implementation(descriptor)(options, context),
                starts_texts=starts_texts,
            )
        )
    return found
