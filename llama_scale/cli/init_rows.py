"""What ``llama-scale init`` finds in a task's files: whether the rows can be used, and the numbers that follow."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from llama_scale.data.survey import Survey, survey
from llama_scale.errors import DataError
from llama_scale.extensions.examples import Example, FileTaskOptions, SplitName, SplitShares, read_all
from llama_scale.runs.task_files import FIRST_ROWS, MOST_ROWS

_FEW_ROWS = 20
"""A file of fewer rows has no validation split."""
_VALIDATION_SHARES = (5, 10, 20)
"""Percent of the rows, the first that gives the split a row at all."""
_SHORTEST, _LONGEST_CPU, _LONGEST_CUDA = 256, 1024, 4096
"""Bounds of the rows that are proposed, tokens."""
_BUSY = 2048
"""Tokens of a row that keep an accelerator busy."""
_ROWS_A_STEP = 16
"""Most rows of a step that are proposed, ..."""
_STEPS_AN_EPOCH = 20
"""... fewer where an epoch would have fewer steps."""


def look_at_rows(options: FileTaskOptions, *, folder: Path, vocab_size: int) -> tuple[Survey, dict[str, int]]:
    """Return what the data hold, and the smallest share for validation that gives the split a row.

    The rows are checked as a launch does, the first ones with the chat template.

    Args:
        options: The task's options.
        folder: The tokenizer's.
        vocab_size: The model's.

    Raises:
        DataError: The file is missing, damaged or empty, or a row cannot be used.
    """
    shares = {"train": 100, "validation": 0, "test": 0}
    found = _survey(options, shares, vocab_size, more=options.first_rows_check(folder))
    if not found.tokens:
        raise DataError(f"{options.files()[0]} holds no rows; add examples, one JSON object a line")
    for share in _VALIDATION_SHARES if found.rows.total() >= _FEW_ROWS else ():
        shares = {"train": 100 - share, "validation": share, "test": 0}
        found = _survey(options, shares, vocab_size)
        if found.rows["validation"]:
            break
    return found, shares


def _survey(
    options: FileTaskOptions,
    shares: Mapping[str, int],
    vocab_size: int,
    *,
    more: Callable[[Example], None] | None = None,
) -> Survey:
    data = SplitShares.model_validate({"kind": "split_shares", "path": options.files()[0], **shares})

    def rows() -> Iterator[tuple[SplitName, Example]]:
        found = read_all(options.model_copy(update={"data": data}))
        for number, (split, example) in enumerate(itertools.islice(found, MOST_ROWS)):
            if more is not None and number < FIRST_ROWS:
                more(example)
            yield split, example

    return survey(rows(), vocab_size=vocab_size)


def row_length(found: Survey, *, context: int, cuda: bool) -> int:
    """Return ``data.seq_length``: the shortest power of two that holds the longest row, as far as the context goes.

    Accelerators get longer rows, of several examples each, as long as an epoch has steps enough.

    Args:
        found: The rows.
        context: The model's.
        cuda: Whether it trains on accelerators.
    """
    length = _SHORTEST
    while length < found.longest:
        length *= 2
    while cuda and length < _BUSY and found.tokens >= 2 * length * _ROWS_A_STEP * _STEPS_AN_EPOCH:
        length *= 2
    return min(length, context, _LONGEST_CUDA if cuda else _LONGEST_CPU)


def rows_a_step(found: Survey, *, length: int) -> int:
    """Return the rows of a step: few enough for an epoch of some steps.

    Args:
        found: The rows.
        length: ``data.seq_length``.
    """
    wanted = max(1.0, found.tokens / length / _STEPS_AN_EPOCH)
    return min(_ROWS_A_STEP, 1 << round(math.log2(wanted)))
