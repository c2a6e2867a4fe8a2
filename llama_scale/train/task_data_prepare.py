"""Make a run's examples into features once: one rank writes them into the run folder, the others wait and map them."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_scale.errors import DataError
from llama_scale.extensions.examples import FileTaskOptions
from llama_scale.train.task_data_store import FeatureWriter, PreparedSplit, Record

if TYPE_CHECKING:
    from llama_scale.extensions.examples import SplitName
    from llama_scale.spec.run import RunSpec
    from llama_scale.train.run_tasks import RunTask

logger = logging.getLogger(__name__)

_POLL_S = 0.05


def prepared_splits(
    spec: RunSpec, tasks: Sequence[RunTask], split: SplitName, *, folder: Path, prepares: bool
) -> list[PreparedSplit]:
    """Return the features of a split of each task, made by the one rank that ``prepares`` if they are not there.

    What has been prepared stays: a run that is resumed reads what it began with, even if the files have changed.

    Args:
        spec: The run.
        tasks: Its tasks.
        split: Which split.
        folder: Where they lie, or will lie; the same for all ranks.
        prepares: Whether this rank makes them; the others wait until they appear. If that rank fails, the others are
            ended with it.

    Raises:
        DataError: An example cannot be used, a split has none, or the disk is full.
    """
    found = []
    for task in tasks:
        place = features_folder(folder, spec, task, split)
        if prepares and not place.exists():
            record = _prepare(spec, task, split, place)
            logger.info("task %s, %s: %s", task.name, split, record.text(spec.data.seq_length))
            for note in record.notes:
                logger.warning("task %s, %s: %s", task.name, split, note)
        while not place.exists():
            time.sleep(_POLL_S)
        found.append(PreparedSplit(place))
    return found


def features_folder(folder: Path, spec: RunSpec, task: RunTask, split: SplitName) -> Path:
    """Return where the features of a task's split lie in a folder of examples, or will lie."""
    return folder / f"{task.name}-{_digest(spec, task)}" / split


def _digest(spec: RunSpec, task: RunTask) -> str:
    """Return a short digest of all that the features follow from, the files' content aside."""
    assert spec.tokenizer is not None
    content = {
        "kind": task.kind,
        "options": _named_options(task.task.options),
        "data": spec.data.model_dump(mode="json"),
        "tokenizer": spec.tokenizer.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _named_options(options: Any) -> dict[str, Any]:
    """Return a task's options, without those that a later version has added and that are at their defaults."""
    found: dict[str, Any] = options.model_dump(mode="json")
    fields = type(options).model_fields
    for name in getattr(options, "added_options", ()):
        if getattr(options, name) == fields[name].get_default(call_default_factory=True):
            del found[name]
    return found


def _prepare(spec: RunSpec, task: RunTask, split: SplitName, place: Path) -> Record:
    """Write the features beside their place and give them their name when they are complete."""
    scratch = place.with_name(f".{split}.{secrets.token_hex(4)}.tmp")
    try:
        for left_over in place.parent.glob(f".{split}.*.tmp"):
            shutil.rmtree(left_over)
        scratch.mkdir(parents=True)
        record = _write(spec, task, split, scratch)
        scratch.rename(place)
    except OSError as error:
        raise DataError(f"cannot write the examples of task {task.name!r} to {place}: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return record


def _write(spec: RunSpec, task: RunTask, split: SplitName, folder: Path) -> Record:
    where = f"task {task.name!r}, split {split!r}"
    assert spec.data.kind == "tasks"
    check = _vocabulary_check(spec, where)
    options, unread = task.task.options, set[str]()
    with FeatureWriter(
        folder,
        where=where,
        seq_length=spec.data.seq_length,
        own_head=task.head == "own",
        starts_texts=task.starts_texts,
    ) as writer:
        for example in task.task.examples(split):
            features = list(task.task.encode(example))
            for feature in features:
                check(int(max(feature.tokens, default=0)))
            writer.add(features)
            if isinstance(options, FileTaskOptions):
                unread |= options.unread_fields(example)
        packing = spec.data.packing and task.task.packable
        return writer.finish(packing=packing, unread=unread, notes=task.task.notes())


def _vocabulary_check(spec: RunSpec, where: str) -> Callable[[int], None]:
    size = spec.model.vocab_size

    def check(token: int) -> None:
        if token >= size:
            raise DataError(
                f"{where}: the tokenizer gives token id {token}, but model.vocab_size={size} allows 0 to {size - 1}; "
                "use the tokenizer that belongs to the model"
            )

    return check
