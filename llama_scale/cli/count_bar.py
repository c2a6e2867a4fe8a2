"""A progress bar that counts things (examples, documents) on stderr; shows nothing where stderr is no terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class CountBar:
    """Move a bar.

    Args:
        progress: rich's Progress.
        task: Its task.
    """

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress = progress
        self._task = task

    def advance(self, amount: int) -> None:
        """Move by so many."""
        self._progress.advance(self._task, amount)


@contextlib.contextmanager
def count_bar(label: str, *, total: int) -> Iterator[CountBar]:
    """Give a bar with the count, the time that has passed and the time left."""
    from rich.console import Console  # lazy: keeps rich out of --help
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield CountBar(progress, progress.add_task(label, total=total))
