"""What processes of a run tell each other through files, as checked records: failures, verdicts, status."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

State = Literal["queued", "starting", "running", "stopping", "stopped", "succeeded", "failed", "preempted"]
ENDED: frozenset[str] = frozenset({"stopped", "succeeded", "failed", "preempted"})
"""States in which no process of the run is alive."""


class Record(BaseModel):
    """Base of all records: immutable; keys that a newer version wrote are let pass."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RankFailure(Record):
    """Tell why one rank ended (``attempts/NNN/error-rank-RRRRR.json``)."""

    rank: int | None = Field(None, description="Global rank; None when the agent itself is meant.")
    kind: str = Field("", description="Kind of failure: crash, collateral, config, data, oom, signal, ...")
    error: str = Field("", description="One line: type and message of the exception, or the signal.")
    traceback: str = Field("", description="Its traceback; empty for a signal.")
    time_utc: str = Field("", description="When it happened, ISO 8601.")


class Verdict(Record):
    """Tell how the ranks of an attempt ended (``attempts/NNN/verdict.json``); the agent writes it last."""

    state: Literal["ok", "preempted", "failed"] = Field(description="How the ranks ended.")
    exit_code: int = Field(description="0 good, 75 stopped after saving, anything else failed.")
    message: str = Field("", description="One sentence for the user.")
    first_failure: RankFailure | None = Field(None, description="The failure that caused the others.")
    victims: tuple[int, ...] = Field((), description="Ranks that failed because of it or were ended by the agent.")


class MemoryPeak(Record):
    """Tell how much memory one rank came to need (``attempts/NNN/memory-rank-RRRRR.json``, one rank a stage)."""

    kind: Literal["allocated", "resident"] = Field(
        description="allocated: tensors on the device, by torch; resident: growth of the process on a CPU."
    )
    used: int = Field(ge=0, description="Peak in bytes, what was there before the model was built apart.")
    spec_digest: str = Field("", description="Of the spec that the rank ran: another layout's memory tells nothing.")
    total: int = Field(ge=0, description="Peak in bytes of all that torch reserved, or of the whole process.")


class Submission(Record):
    """Tell what a scheduler was given (``submission.json``)."""

    launcher: str = Field(description="Kind of the launcher, which knows the scheduler.")
    jobs: tuple[str, ...] = Field(description="Names of the jobs, in the order in which they run.")
    submitted_utc: str = Field(description="When, ISO 8601.")
    idle_requeues: int = Field(0, description="Times in a row that the run was queued again without a new checkpoint.")
    requeued_from: str | None = Field(None, description="Newest checkpoint when it was queued again.")


class Status(Record):
    """Tell how a run is doing (``status.json``); the supervisor is its only writer."""

    state: State = Field(description="Where the run stands.")
    supervisor_pid: int = Field(description="Process that watches over the run.")
    supervisor_host: str = Field("", description="Host it runs on.")
    agent_pid: int | None = Field(None, description="Process that started the ranks, while an attempt runs.")
    agent_pgid: int | None = Field(None, description="Its process group and session.")
    attempt: int = Field(0, description="Number of the present or last attempt, over all resumes.")
    restarts: int = Field(0, description="Restarts made by this supervisor.")
    step: int = Field(0, description="Last step in metrics.jsonl.")
    steps: int = Field(0, description="Steps the run is to have.")
    checkpoint: str | None = Field(None, description="Newest complete checkpoint.")
    exit_code: int | None = Field(None, description="What launch exits with, once the run has ended.")
    message: str = Field("", description="One sentence for the user.")
    first_failure: RankFailure | None = Field(None, description="Failure that ended the last failed attempt.")
    victims: tuple[int, ...] = Field((), description="Ranks that failed because of it.")
    started_utc: str = Field(description="Start of this supervisor.")
    updated_utc: str = Field(description="Last change or heartbeat.")


T = TypeVar("T", bound=Record)


def load_record(path: Path, kind: type[T]) -> T | None:
    """Read a record; None if there is none (yet) or it is no record of this kind.

    Records are written by other processes that may be killed at any moment, so a file that cannot be understood
    means the same as no file: nobody has said anything.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
