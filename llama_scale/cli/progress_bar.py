"""The progress bar of a run on a terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llama_scale.runs.progress import StepLine


class ProgressBar:
    """Show steps, loss, tokens a second and the time left on stderr.

    Args:
        steps: Steps of the run.
    """

    def __init__(self, *, steps: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("starting", total=steps, figures="")

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, line: StepLine) -> None:
        """Move to a step."""
        from llama_scale.cli.follow import describe_step

        self._progress.update(
            self._task, completed=line.step, description="training", figures=describe_step(line), refresh=True
        )

    def note(self, text: str) -> None:
        """Print a sentence above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)
