"""Check the examples of a run's tasks before anything of the run is created: files, fields, splits. No torch."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from llama_scale.errors import LaunchError
from llama_scale.extensions import discover
from llama_scale.extensions.api import TaskDescriptor, TaskOptions
from llama_scale.extensions.examples import FileTaskOptions, read_all
from llama_scale.spec.adapters import Task
from llama_scale.spec.run import RunSpec

MOST_ROWS = 200_000
"""Rows of a task that a launch reads; the rank that prepares the examples checks all of them again."""
FIRST_ROWS = 1_000
"""Rows of a task that a launch also checks with the tokenizer, which takes longer."""


def task_faults(spec: RunSpec, prepared: Path | None = None) -> Iterator[str]:
    """Yield what is wrong with the tasks' options and files, one fault a task.

    Args:
        spec: The run.
        prepared: See ``preflight.check_inputs``.
    """
    for task in spec.tasks:
        try:
            descriptor = discover.task(task.kind)
            options = discover.read_options(descriptor, task.options)
            faults = list(_faults(spec, task, descriptor, options, prepared))
        except LaunchError as error:
            faults = [str(error)]
        yield from (f"task {task.name!r}: {fault}" for fault in faults)


def _faults(
    spec: RunSpec, task: Task, descriptor: TaskDescriptor, options: TaskOptions, prepared: Path | None
) -> Iterator[str]:
    missing = [path for path in descriptor.files(options) if not Path(path).exists()]
    if missing:
        yield f"{', '.join(missing)} {'does' if len(missing) == 1 else 'do'} not exist"
        return
    if not isinstance(options, FileTaskOptions):
        return
    if found := list(options.faults(spec.data.seq_length)):
        yield from found
        return
    needed = [name for name in ("train", "validation") if task.weight > 0 and (name == "train" or spec.validation)]
    if prepared is not None and all(_is_prepared(prepared, task, name) for name in needed):
        return
    counts = _counts(options, spec)
    if counts.total() == MOST_ROWS:
        return  # a split may be in what was not read
    for name in needed:
        if not counts[name]:
            there = ", ".join(f"{number} in {split}" for split, number in counts.items()) or "no rows at all"
            yield (
                f"its split {name!r} is empty ({there}); add examples, or change how options.data splits them"
                + ("" if name == "train" else ", or remove the section validation")
            )


def _is_prepared(folder: Path, task: Task, split: str) -> bool:
    return any(folder.glob(f"{task.name}-{'[0-9a-f]' * 12}/{split}"))


def _counts(options: FileTaskOptions, spec: RunSpec) -> Counter[str]:
    """Check the rows and return how many each split has.

    Raises:
        DataError: A row cannot be used.
    """
    more = None
    if spec.tokenizer is not None and Path(spec.tokenizer.path).exists():  # a missing one is named elsewhere
        more = options.first_rows_check(Path(spec.tokenizer.path))
    counts: Counter[str] = Counter()
    for number, (name, example) in enumerate(itertools.islice(read_all(options), MOST_ROWS)):
        if more is not None and number < FIRST_ROWS:
            more(example)
        counts[name] += 1
    return counts


def task_notes(spec: RunSpec) -> Iterator[str]:
    """Yield what a user must know of the tasks of a run whose inputs are in order, e.g. which fields are not read."""
    for task in spec.tasks if spec.data.kind == "tasks" else ():
        descriptor = discover.task(task.kind)
        options = discover.read_options(descriptor, task.options)
        if not isinstance(options, FileTaskOptions):
            continue
        rows = itertools.islice(read_all(options), FIRST_ROWS)
        if unread := {name for _, row in rows for name in options.unread_fields(row)}:
            yield f"task {task.name}: fields that are not read: {', '.join(map(repr, sorted(unread)))}"
        if spec.tokenizer is not None:
            yield from (f"task {task.name}: {note}" for note in options.launch_notes(Path(spec.tokenizer.path)))
