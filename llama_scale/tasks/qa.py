"""What the two question answering tasks share: questions, contexts and answers in SQuAD's shape or flat."""

from __future__ import annotations

from typing import Any

from llama_scale.errors import DataError
from llama_scale.extensions.examples import Example


def answer_texts(example: Example, field: str) -> list[str]:
    """Return the answers of an example; none: the question has no answer.

    Args:
        example: Its field holds a text, a list of texts, or SQuAD's ``{"text": [...], "answer_start": [...]}``.
        field: Name of that field.

    Raises:
        DataError: The field is missing or holds something else.
    """
    if field not in example.values:
        there = ", ".join(map(repr, example.values)) or "none"
        raise DataError(f"{example.where}: no field {field!r} (option answers_field); the fields are {there}")
    value = example[field]
    if isinstance(value, dict):
        value = value.get("text")
    if value is None or value == "":
        return []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f"{example.where}: field {field!r} must be a text, a list of texts, or "
            '{"text": [...], "answer_start": [...]}, none of the texts blank'
        )
    return list(texts)


def answer_spans(example: Example, *, field: str, start_field: str, context: str) -> list[tuple[int, int]]:
    """Return the characters ``[start, end)`` of each answer in the context, checked against its text.

    Args:
        example: The example.
        field: Name of the field with the answers.
        start_field: Name of the field with the first character of each; where a row has none, an answer stands for
            its first occurrence.
        context: The context.

    Raises:
        DataError: An answer is not in the context, or not where it is said to be.
    """
    texts = answer_texts(example, field)
    starts = _starts(example, field, start_field)
    if starts is None:
        starts = [context.find(text) for text in texts]
    elif len(starts) != len(texts):
        raise DataError(f"{example.where}: {len(texts)} answers, but {len(starts)} values of answer_start")
    spans = []
    for text, start in zip(texts, starts, strict=True):
        if start < 0 or context[start : start + len(text)] != text:
            raise DataError(_misplaced(example, text, start, context))
        spans.append((start, start + len(text)))
    return spans


def _starts(example: Example, field: str, start_field: str) -> list[int] | None:
    value: Any = example[field]
    found = value.get("answer_start") if isinstance(value, dict) else example.values.get(start_field)
    if found is None:
        return None
    starts = found if isinstance(found, list) else [found]
    if not all(isinstance(start, int) and not isinstance(start, bool) for start in starts):
        raise DataError(f"{example.where}: answer_start is {found!r}, and it must be an integer, or a list of them")
    return starts


def _misplaced(example: Example, text: str, start: int, context: str) -> str:
    shown = text if len(text) <= 60 else text[:57] + "..."
    elsewhere = context.find(text)
    if elsewhere < 0:
        return f"{example.where}: the answer {shown!r} is not in its context; correct or remove the row"
    there = context[max(0, start) : max(0, start) + len(text)]
    there = there if len(there) <= 60 else there[:57] + "..."
    return (
        f"{example.where}: the answer {shown!r} does not begin at character answer_start={start}, where {there!r} "
        f"stands; it is at {elsewhere} (characters are counted, not bytes)"
    )
