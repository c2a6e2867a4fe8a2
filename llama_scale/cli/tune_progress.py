"""What ``tune`` shows while layouts run: a bar on a terminal, a line a launch elsewhere; on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from llama_scale.cli.output import say
from llama_scale.tune.records import Trial


class TuneProgress(Protocol):
    """Shows launches."""

    def begin(self, name: str) -> None:
        """A launch of this layout begins."""

    def tick(self) -> None:
        """It goes on."""

    def end(self, trial: Trial) -> None:
        """It has ended."""


@contextmanager
def open_progress(*, most: int, layouts: int) -> Iterator[TuneProgress]:
    """Show launches until the block ends.

    Args:
        most: Layouts that are launched at most.
        layouts: Layouts that there are.
    """
    say(f"{layouts} layouts fit; the best are launched, {most} at most")
    if not sys.stderr.isatty():
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar, bar.add_task("", total=most))


def result_words(trial: Trial) -> str:
    """Word a launch's result."""
    return f"{trial.step_s * 1e3:,.1f} ms a step" if trial.step_s is not None else f"failed: {trial.problem[:200]}"


class _Lines:
    def __init__(self) -> None:
        self._name, self._number = "", 0

    def begin(self, name: str) -> None:
        self._name, self._number = name, self._number + 1

    def tick(self) -> None:
        pass

    def end(self, trial: Trial) -> None:
        say(f"launch {self._number}: {self._name}: {result_words(trial)}")


class _Bar:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task, self._name = bar, task, ""

    def begin(self, name: str) -> None:
        self._name = name
        self._bar.update(self._task, description=name)

    def tick(self) -> None:
        self._bar.refresh()

    def end(self, trial: Trial) -> None:
        self._bar.console.print(f"{self._name}: {result_words(trial)}", highlight=False)
        self._bar.advance(self._task)
