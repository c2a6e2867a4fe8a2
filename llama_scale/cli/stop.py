"""``llama-scale stop``: ask a run to save a checkpoint and end, and wait for it."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from llama_scale.cli.output import say
from llama_scale.cli.runs_dir import DEFAULT_RUNS, RunName, RunsDir
from llama_scale.errors import LaunchError
from llama_scale.runs.find import find_run
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.lock import is_running
from llama_scale.runs.records import ENDED
from llama_scale.runs.submission import cancel, load_submission, stops_by_cancelling
from llama_scale.runs.view import GONE, RunView, look

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

_POLL_S = 0.2


@app.command()
def stop(
    run: RunName,
    *,
    runs_dir: RunsDir = DEFAULT_RUNS,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=0, help="Stop waiting after so long."),
    ] = None,
) -> None:
    """Stop a run after the step it is in, with a checkpoint, and wait until all its processes have ended.

    Example: `llama-scale stop first --timeout 600`.

    Exit status: 0 stopped (or not running in the first place), 5 it failed meanwhile or --timeout was reached.
    """
    folder = find_run(run, root=runs_dir)
    view = look(folder)
    submission = load_submission(folder)
    if submission is not None and stops_by_cancelling(submission, state=view.state):
        cancel(folder, submission, state=view.state)
        say(f"{folder.name}: {look(folder).message}")
        return
    if not is_running(folder) and (submission is None or view.state in ENDED or view.state == GONE):
        if view.leftovers:
            view = _wait(folder, timeout)
        say(f"{folder.name} is not running: {view.state}: {view.message}")
        return
    try:
        folder.stop.touch()
    except OSError as error:
        raise LaunchError(f"cannot write {folder.stop}: {error.strerror}") from error
    say(f"stopping {folder.name}: it finishes its step and saves a checkpoint ...")
    view = _wait(folder, timeout)
    checkpoint = view.status.checkpoint if view.status else None
    if view.state == "failed":
        raise LaunchError(f"{folder.path}: {view.message}; newest checkpoint: {checkpoint or 'none'}")
    say(f"{view.state}: {view.message}; newest checkpoint: {checkpoint or 'none'}")


def _wait(run: RunFolder, timeout: float | None) -> RunView:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        view = look(run)
        # The lock is let go a moment after the last status: a `resume` right after `stop` must find it free.
        if (view.state in ENDED and not is_running(run)) or (view.state == GONE and not view.leftovers):
            return view
        if deadline is not None and time.monotonic() > deadline:
            raise LaunchError(
                f"{run.path} is still stopping after {timeout:g} s ({view.state}: {view.message}); it is killed when "
                "launcher.grace_s is over"
            )
        time.sleep(_POLL_S)
