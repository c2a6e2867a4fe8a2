"""Runs whose jobs a scheduler keeps: hand them over, ask after them, take them back."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

from llama_scale.errors import LaunchError
from llama_scale.launchers.base import load_launcher
from llama_scale.launchers.queue import JobView, Queue, queue_of
from llama_scale.runs.atomic import write_atomically
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.records import ENDED, Status, Submission, load_record
from llama_scale.runs.start import new_status
from llama_scale.spec.run import RunSpec

_FRESH_S = 30.0
"""A status that its supervisor renewed so lately is believed without asking the scheduler."""
_ASK_S = 5.0
"""Least time between two questions to the scheduler about one run."""

_answers: dict[tuple[str, tuple[str, ...]], tuple[float, JobView]] = {}


def load_submission(run: RunFolder) -> Submission | None:
    """Return what a scheduler was given for a run; None for runs that this machine's processes run."""
    return load_record(run.submission, Submission)


def enqueue(run: RunFolder, *, spec: RunSpec, queue: Queue) -> Submission:
    """Hand a run's bundle to a scheduler; the caller holds the run folder's lock, which keeps the job waiting.

    Raises:
        LaunchError: The scheduler refuses it, or the run folder cannot be written.
    """
    try:
        run.logs.mkdir(exist_ok=True)
        run.stop.unlink(missing_ok=True)
        write_status(run, new_status(state="queued", message="being submitted"))
        jobs = queue.submit(run.path, bundle=run.bundle, spec=spec, environment=os.environ)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        submission = Submission(launcher=spec.launcher.kind, jobs=jobs, submitted_utc=now)
        write_atomically(run.submission, submission.model_dump_json(indent=2) + "\n")
        queued = f"queued as {spec.launcher.kind} job{'s' if len(jobs) > 1 else ''} {', '.join(jobs)}"
        write_status(run, new_status(state="queued", message=queued))
    except LaunchError as error:
        write_status(run, new_status(state="failed", message=str(error), exit_code=error.exit_code))
        raise
    except OSError as error:
        raise LaunchError(f"cannot write into {run.path}: {error.strerror}; check its permissions and space") from error
    return submission


def write_status(run: RunFolder, status: Status) -> None:
    """Write status.json for a run that has no supervisor now.

    Raises:
        OSError: It cannot be written.
    """
    write_atomically(run.status, status.model_dump_json(indent=2) + "\n")


def is_fresh(run: RunFolder) -> bool:
    """Tell whether a supervisor somewhere has renewed the status lately."""
    try:
        return time.time() - run.status.stat().st_mtime < _FRESH_S
    except OSError:
        return False


def ask(submission: Submission, *, patience_s: float = _ASK_S) -> JobView:
    """Return what the scheduler says of a run's jobs.

    Args:
        submission: What it was given.
        patience_s: An answer that is not older will do.
    """
    key = submission.launcher, submission.jobs
    known = _answers.get(key)
    if known is not None and time.monotonic() - known[0] < patience_s:
        return known[1]
    answer = _queue(submission).look(submission.jobs)
    _answers[key] = time.monotonic(), answer
    return answer


def stops_by_cancelling(submission: Submission, *, state: str) -> bool:
    """Tell whether a run is stopped by taking its jobs back, rather than by a request in the run folder."""
    return state == "queued" or (state not in ENDED and _queue(submission).cancel_saves)


def cancel(run: RunFolder, submission: Submission, *, state: str) -> None:
    """Take a run's jobs back, and say so in its status.

    Args:
        run: The run folder.
        submission: What the scheduler was given.
        state: State of the run now.

    Raises:
        LaunchError: The scheduler cannot be asked.
    """
    queue = _queue(submission)
    queue.cancel(submission.jobs)
    jobs = ", ".join(submission.jobs)
    message = f"taken out of the queue before it ran ({jobs})"
    old = load_record(run.status, Status)
    if state != "queued":
        message = f"told to save and leave ({jobs})"
    elif old is not None and old.step:
        message = f"taken out of the queue while it waited to go on ({jobs})"
    fresh = new_status(state="stopped", message=message, exit_code=0)
    keep = {name: getattr(old, name) for name in ("attempt", "step", "steps", "checkpoint")} if old else {}
    write_status(run, fresh.model_copy(update=keep))


def log_command(submission: Submission, *, follow: bool) -> list[str] | None:
    """Return the command that prints what the scheduler keeps of rank 0's log; None if logs are in the run folder."""
    command = getattr(_queue(submission), "log_command", None)
    found: list[str] | None = command(submission.jobs, follow=follow) if command else None
    return found


def check_idle(run: RunFolder) -> None:
    """Make sure that no job of a run waits or runs.

    Raises:
        LaunchError: One does, or the scheduler cannot tell.
    """
    submission = load_submission(run)
    if submission is None:
        return
    status = load_record(run.status, Status)
    ended = status is not None and status.state in ENDED
    answer = ask(submission, patience_s=0)
    # A job whose run has ended only leaves the queue; its status was its last word.
    if answer.phase == "ended" or (ended and answer.phase != "waiting"):
        return
    raise LaunchError(
        f"{run.path}: {answer.words}; a run folder has one run at a time: end it first with "
        f"`llama-scale stop {run.name}`"
    )


def _queue(submission: Submission) -> Queue:
    queue = queue_of(load_launcher(submission.launcher))
    if queue is None:
        raise LaunchError(f"the launcher {submission.launcher} has no queue; was submission.json edited?")
    return queue
