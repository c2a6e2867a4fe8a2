"""Examples of a simulation's tasks: the first rows of the spec's own files, or the kind's sample rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llama_scale.data.examples import SPLITS, Example
from llama_scale.errors import DataError, LaunchError
from llama_scale.extensions import discover
from llama_scale.extensions.api import TaskDescriptor, TaskOptions
from llama_scale.extensions.examples import FileTaskOptions, read_all
from llama_scale.simulate.shrink import TaskInput
from llama_scale.spec.adapters import Task

_ROWS = 512
"""Rows of a split that are taken from a file."""
_READ = 50_000
"""Rows that are looked through for those of rare splits."""
_REPEATED = 4
"""Times that the few rows of a sample are written."""

Rows = Mapping[str, list[Mapping[str, Any]]]


def prepare(task: Task, folder: Path, *, seq_length: int, tokenizer: bool) -> TaskInput:
    """Write the rows that a task of the simulation reads, and return its options.

    Args:
        task: The spec's task.
        folder: New folder for its files.
        seq_length: The spec's row length, the most that is needed.
        tokenizer: The spec's tokenizer is here; rows of the files would have other lengths with another.

    Raises:
        LaunchError: A row of the files cannot be used, or they are not here and there is nothing in their place.
    """
    descriptor = discover.task(task.kind)
    options = discover.read_options(descriptor, task.options)
    missing = [path for path in descriptor.files(options) if not Path(path).exists()]
    if not missing and not isinstance(options, FileTaskOptions):
        return TaskInput(options=task.options, least_seq=1, why="the plugin's own data")
    if not missing and tokenizer:
        rows, why = _first_rows(options), "its first rows"
        chosen: Mapping[str, Any] = task.options
    else:
        chosen, rows = _instead(task, descriptor)
        why = f"{missing[0] if missing else 'the tokenizer'} is not here: sample rows"
    changed = {**chosen, "data": _write(rows, folder)}
    return TaskInput(options=changed, least_seq=_least(descriptor, changed, seq_length), why=why)


def _first_rows(options: FileTaskOptions) -> Rows:
    rows: dict[str, list[Mapping[str, Any]]] = {name: [] for name in SPLITS}
    for number, (name, example) in enumerate(read_all(options)):
        if len(rows[name]) < _ROWS:
            rows[name].append(example.values)
        if number >= _READ or all(len(found) >= _ROWS for found in rows.values()):
            break
    return rows


def _instead(task: Task, descriptor: TaskDescriptor) -> tuple[Mapping[str, Any], Rows]:
    """Return options and rows of a task whose files are not here: the kind's sample, under the spec's field names.

    Raises:
        LaunchError: The kind has no sample, or its rows do not go with the options.
    """
    faults: list[str] = []
    for chosen in (task.options, _required(task, descriptor)):
        rows: list[Mapping[str, Any]] = [_renamed(row, descriptor, chosen) for row in descriptor.sample]
        try:
            _check_all(rows, descriptor, chosen)
        except (DataError, ValidationError, TypeError) as error:
            faults.append(str(error))
        else:
            if rows:
                return chosen, dict.fromkeys(SPLITS, rows * _REPEATED)
    said = f" ({faults[0]})" if faults else ""
    raise LaunchError(
        f"task {task.name!r}: its files or tokenizer are not on this machine, and kind {task.kind} has no sample rows "
        f"that go with its options{said}; put a file with a few of its rows where the spec says, or name one with --set"
    )


def _required(task: Task, descriptor: TaskDescriptor) -> dict[str, Any]:
    """Return the options that have no default."""
    fields = descriptor.options.model_fields
    return {name: value for name, value in task.options.items() if name in fields and fields[name].is_required()}


def _renamed(row: Mapping[str, Any], descriptor: TaskDescriptor, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sample row with the field names that options give (``document_field: body``)."""
    fields = descriptor.options.model_fields
    names = {
        fields[key].default: value
        for key, value in options.items()
        if key.endswith("_field") and key in fields and isinstance(value, str)
    }
    return {names.get(key, key): value for key, value in row.items()}


def _check_all(rows: list[Mapping[str, Any]], descriptor: TaskDescriptor, options: Mapping[str, Any]) -> None:
    somewhere = {"kind": "split_files", "train": "/sample.jsonl"}
    model: TaskOptions = discover.read_options(descriptor, {**options, "data": somewhere})
    if not isinstance(model, FileTaskOptions):
        raise TypeError(f"options of kind {descriptor.name} do not name their files in data")
    for number, row in enumerate(rows, start=1):
        model.check(Example(f"sample row {number}", row))


def _write(rows: Rows, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    data: dict[str, Any] = {"kind": "split_files"}
    for name in SPLITS:
        if not rows[name]:
            data[name] = None
            continue
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows[name]), encoding="utf-8")
        data[name] = str(path)
    return data


def _least(descriptor: TaskDescriptor, options: Mapping[str, Any], seq_length: int) -> int:
    """Return the shortest row that a task's options allow: a power of two from 128, or the spec's length."""
    model = discover.read_options(descriptor, options)
    return next((size for size in _lengths(seq_length) if not list(model.faults(size))), seq_length)


def _lengths(most: int) -> Iterator[int]:
    size = 128
    while size < most:
        yield size
        size *= 2
