"""Fields of rows that a task does not read: those that carry meaning are errors, the others are named once."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from llama_scale.data.examples import Example
from llama_scale.errors import DataError

_WEIGHTS = frozenset({"weight", "weights", "loss", "loss_weight", "sample_weight", "train"})
MEANINGFUL = {
    **dict.fromkeys(_WEIGHTS, "says how much the row counts"),
    **dict.fromkeys(("loss_mask", "mask", "labels", "label"), "says what is trained, or what is right"),
    **dict.fromkeys(("system", "system_prompt", "instruction", "input", "history"), "is a part of the prompt"),
    **dict.fromkeys(("messages", "conversations"), "is a conversation"),
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), "is about tools"),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "is a part of the answer"),
    **dict.fromkeys(("chat_template", "chat_template_kwargs", "documents"), "is meant for the chat template"),
    **dict.fromkeys(("chosen", "rejected"), "is one of two answers to prefer or avoid"),
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "is no text"),
    **dict.fromkeys(("negative", "negatives", "hard_negatives"), "names documents that do not answer the query"),
}
"""What fields that data sets agree on mean; a task that passes over one would train on something else."""


def check_unread(example: Example, read: Collection[str]) -> None:
    """Check that no field with a meaning is passed over.

    Args:
        example: A row.
        read: Names of the fields that are read, or left out on purpose.

    Raises:
        DataError: There is one that says something, and is not read.
    """
    for name in sorted(unread_fields(example, read) & MEANINGFUL.keys()):
        value = example[name]
        shown = json.dumps(value, ensure_ascii=False, default=str)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise DataError(
            f"{example.where}: field {name!r} ({shown}) {MEANINGFUL[name]}, and this task does not read it; name it in "
            "the task's option ignore_fields to leave it out, remove it, or choose the option or kind of task that "
            "reads it"
        )


def unread_fields(example: Example, read: Collection[str]) -> set[str]:
    """Return the names of a row's other fields that say something."""
    return {name for name in example.values.keys() - set(read) if not _says_nothing(name, example[name])}


def _says_nothing(name: str, value: Any) -> bool:
    return value is None or value in ("", [], {}) or (name in _WEIGHTS and value == 1)
