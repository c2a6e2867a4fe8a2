"""What is true of a run now: what its status says, corrected by whether anybody is still there to update it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llama_scale.launchers.processes import list_marked
from llama_scale.runs.folder import RUN_VARIABLE, RunFolder
from llama_scale.runs.lock import is_running
from llama_scale.runs.progress import last_step
from llama_scale.runs.records import ENDED, Status, Submission, load_record
from llama_scale.runs.submission import ask, is_fresh, load_submission

GONE = "supervisor gone"
"""State of a run whose supervisor died without a word; its processes end by themselves."""
NEVER = "not started"
"""State of a run folder that no supervisor has written into yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """Show one run.

    Args:
        run: The folder.
        state: A state of ``records.State``, or GONE or NEVER.
        status: Last status written; None if there is none.
        leftovers: Processes of the run that still live though its supervisor is gone (on this host).
        scheduler: What the scheduler says of the run's jobs, if it was asked.
    """

    run: RunFolder
    state: str
    status: Status | None
    leftovers: tuple[int, ...] = ()
    scheduler: str = ""

    @property
    def message(self) -> str:
        """One sentence for the user."""
        if self.state == GONE and self.scheduler:
            return f"{self.scheduler}, and no word of the run's end; go on with `llama-scale resume {self.run.name}`"
        if self.state == GONE:
            what = f"its processes {list(self.leftovers)} are still ending" if self.leftovers else "nothing runs"
            return (
                f"the supervisor died without ending the run; {what}; go on with `llama-scale resume {self.run.name}`"
            )
        if self.status is None and self.state == NEVER and self.run.status.exists():
            return (
                f"{self.run.status.name} is damaged, so what became of it is not known; "
                f"`llama-scale resume {self.run.name}` goes on from the newest checkpoint"
            )
        if self.status is None:
            return "being started" if self.state == "starting" else "no supervisor was started"
        return "; ".join(part for part in (self.status.message, self.scheduler) if part)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``status --json`` prints."""
        base = self.status.model_dump(mode="json") if self.status else {}
        line, start = last_step(self.run.metrics), self.run.load_start()
        return base | {
            "name": self.run.name,
            "path": str(self.run.path),
            "state": self.state,
            "message": self.message,
            "step": line.step if line else 0,
            "loss": line.loss if line else None,
            "tokens_per_s": line.tokens_per_s if line else None,
            "processes_left": list(self.leftovers),
            "started_from": None if start is None else start.model_dump(exclude_none=True),
        }


def look(run: RunFolder) -> RunView:
    """Return how a run is doing."""
    alive = is_running(run)
    status = load_record(run.status, Status)
    if alive:
        return RunView(run=run, state=status.state if status else "starting", status=status)
    # The lock was free: if the state says that it ended, it ended after that or before; else nobody is there.
    status = load_record(run.status, Status)
    if status is None:
        return RunView(run=run, state=NEVER, status=None)
    submission = load_submission(run)
    if submission is not None:
        return _look_at_jobs(run, status, submission)
    if status.state in ENDED:
        return RunView(run=run, state=status.state, status=status)
    left = tuple(list_marked(f"{RUN_VARIABLE}={run.path}"))
    return RunView(run=run, state=GONE, status=status, leftovers=left)


def _look_at_jobs(run: RunFolder, status: Status, submission: Submission) -> RunView:
    """Return how a run is doing whose supervisor is, or was, on some other host."""
    if status.state in ENDED - {"preempted"}:
        return RunView(run=run, state=status.state, status=status)
    if status.state not in ("queued", "preempted") and is_fresh(run):
        return RunView(run=run, state=status.state, status=status)
    answer = ask(submission)
    status = load_record(run.status, Status) or status  # it may have ended between the two looks
    state: str = status.state
    if status.state in ENDED - {"preempted"}:
        return RunView(run=run, state=state, status=status)
    if answer.phase == "waiting":
        state = "queued"
    elif answer.phase == "running" and state == "queued":
        state = "starting"
    elif answer.phase == "ended" and state != "preempted":
        state = answer.outcome or GONE
    return RunView(run=run, state=state, status=status, scheduler=answer.words)
