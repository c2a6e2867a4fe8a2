"""Follow a run in the terminal until it ends: a progress bar, or plain lines when piped; Ctrl-C asks it to stop."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Protocol

from llama_scale.cli.output import say
from llama_scale.errors import PREEMPTED_EXIT, LaunchError
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.outcome import describe
from llama_scale.runs.progress import StepFollower, StepLine
from llama_scale.runs.rank_logs import rank_log_path
from llama_scale.runs.records import ENDED
from llama_scale.runs.view import GONE, RunView, look
from llama_scale.spec.nearby import some

_POLL_S = 0.2
_SHOWN = 16
"""Most ranks that are named in a sentence."""
_LEFT_EXIT = 130
"""Exit status of a command that left a stopping run behind on the third Ctrl-C (128 + SIGINT)."""


class Display(Protocol):
    """How steps are shown."""

    def show(self, line: StepLine) -> None:
        """Show a step."""
        ...

    def note(self, text: str) -> None:
        """Show a sentence."""
        ...


class PlainDisplay:
    """One line a step, for logs and pipes.

    Args:
        steps: Steps of the run.
        every: Steps between lines; the last one and validations are always shown.
    """

    def __init__(self, *, steps: int, every: int) -> None:
        self._steps, self._every = steps, every

    def show(self, line: StepLine) -> None:
        """Print a step."""
        if line.step % self._every == 0 or line.step in (1, self._steps) or line.validation_loss is not None:
            say(f"step {line.step}/{self._steps}  {describe_step(line)}  ETA {_eta(line, self._steps)}")

    def note(self, text: str) -> None:
        """Print a sentence."""
        say(text)


def describe_step(line: StepLine) -> str:
    """Word a step's numbers: loss, tokens a second, validation loss."""
    loss = f"{line.loss:.4f}" if line.loss is not None else "not finite"
    parts = [f"loss {loss}"]
    if line.tokens_per_s is not None:
        parts.append(f"{line.tokens_per_s:,.0f} tokens/s")
    if line.validation_loss is not None:
        parts.append(f"validation loss {line.validation_loss:.4f}")
    return "  ".join(parts)


def _eta(line: StepLine, steps: int) -> str:
    if line.step_time_s is None:
        return "?"
    return str(timedelta(seconds=round((steps - line.step) * line.step_time_s)))


@contextmanager
def open_display(*, steps: int, every: int) -> Iterator[Display]:
    """Yield a progress bar on a terminal, else plain lines."""
    if not sys.stderr.isatty():
        yield PlainDisplay(steps=steps, every=every)
        return
    from llama_scale.cli.progress_bar import ProgressBar  # lazy: rich costs 0.1 s and is of use on terminals only

    with ProgressBar(steps=steps) as bar:
        yield bar


class StopKeys:
    """Turn Ctrl-C (and SIGTERM) into a stop request to the run; say each time what happens.

    Args:
        run: The run followed.
        grace_s: Seconds it gets to save.
        display: Where to say it.
    """

    def __init__(self, run: RunFolder, *, grace_s: float, display: Display) -> None:
        self._run, self._grace_s, self._display = run, grace_s, display
        self._pressed = 0
        self.leave = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals inside the block."""
        old = {number: signal.signal(number, self._press) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _press(self, number: int, frame: FrameType | None) -> None:
        self._pressed += 1
        if self._pressed == 1:
            self._run.stop.touch()
            self._display.note("stopping: the run finishes its step and saves a checkpoint ...")
        elif self._pressed == 2:
            self._display.note(
                f"still stopping; the run is ended by force {self._grace_s:g} s after the first Ctrl-C "
                "(launcher.grace_s). A third Ctrl-C leaves it to do so in the background; "
                f"`llama-scale status {self._run.name}` shows it"
            )
        else:
            self.leave = True


def follow(run: RunFolder, *, steps: int, every: int, grace_s: float, metrics: StepFollower) -> int:
    """Show progress until the run has ended; return the exit code of the command.

    Args:
        run: The run.
        steps: Its steps.
        every: Steps between plain lines.
        grace_s: Seconds a stopping run gets.
        metrics: StepFollower of metrics.jsonl, set to where the new lines begin.
    """
    with open_display(steps=steps, every=every) as display:
        keys = StopKeys(run, grace_s=grace_s, display=display)
        restarts = 0
        with keys.installed():
            while True:
                view = look(run)  # before the lines: what was written before the end is then shown
                for line in metrics.steps():
                    display.show(line)
                restarts = _note_restarts(view, restarts, display)
                if view.state in ENDED or view.state == GONE:
                    break
                if keys.leave:
                    display.note(f"left {run.path} stopping in the background")
                    return _LEFT_EXIT
                time.sleep(_POLL_S)
    return conclude(view)


def _note_restarts(view: RunView, seen: int, display: Display) -> int:
    """Tell of restarts since the last look; return how many there have been."""
    status = view.status
    if status is None or status.restarts <= seen:
        return seen
    failure = status.first_failure
    what = describe(failure) if failure is not None else "the attempt before failed"
    display.note(f"{what}; restart {status.restarts} from {status.checkpoint or 'the beginning'}")
    return status.restarts


def conclude(view: RunView) -> int:
    """Say how a run ended; return the exit code.

    Raises:
        LaunchError: It failed; the message names the first failure and what to do.
    """
    run, status = view.run, view.status
    if view.state == GONE or status is None:
        raise LaunchError(f"{run.path}: {view.message}")
    checkpoint = f"; newest checkpoint {status.checkpoint}" if status.checkpoint else "; no checkpoint was saved"
    if view.state == "failed":
        failure = status.first_failure
        if failure is not None and failure.traceback:
            say(failure.traceback.rstrip())
        parts = [f"{run.path}: {status.message}{checkpoint}"]
        if failure is not None and failure.error not in status.message:
            parts.append(f"first failure: {describe(failure)}")
        if status.victims:
            parts.append(f"because of it ended: ranks {some(status.victims, most=_SHOWN)}")
        if failure is not None and failure.rank is not None:
            parts.append(f"its log: {rank_log_path(run, failure.rank)}")
        error = LaunchError("\n  ".join(parts))
        error.exit_code = status.exit_code or LaunchError.exit_code
        raise error
    say(f"{view.state}: {status.message}{checkpoint}")
    if view.state in ("stopped", "preempted"):
        say(f"go on with: llama-scale resume {shlex.quote(str(run.path))}")
        return PREEMPTED_EXIT
    return 0
