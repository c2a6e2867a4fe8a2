"""Judge how an attempt ended from what its agent left: exit status, verdict, error files of ranks."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from llama_scale.errors import PREEMPTED_EXIT, LaunchError, PluginError, SpecError
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.hang import silent_ranks
from llama_scale.runs.records import RankFailure, State, Verdict, load_record

_OWN_CODES = frozenset({SpecError.exit_code, PluginError.exit_code})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Say how an attempt ended.

    Args:
        state: State of the run if it is not restarted.
        exit_code: What ``launch`` exits with then.
        message: One sentence for the user.
        first_failure: The failure that caused the others.
        victims: Ranks that failed because of it.
    """

    state: State
    exit_code: int
    message: str
    first_failure: RankFailure | None = None
    victims: tuple[int, ...] = ()


def judge(run: RunFolder, attempt: int, *, status: int, stop_reason: str | None, killed: bool) -> Outcome:
    """Turn an agent's end into an outcome.

    Args:
        run: The run folder.
        attempt: Number of the attempt.
        status: The agent's exit status; negative for a signal.
        stop_reason: Who asked the run to stop; None if nobody did.
        killed: The supervisor had to kill it, because it did not stop in time.
    """
    verdict = load_record(run.verdict(attempt), Verdict)
    first = verdict.first_failure if verdict else _earliest_failure(run, attempt)
    victims = verdict.victims if verdict else ()
    if status == 0:
        return Outcome(state="succeeded", exit_code=0, message="all steps are done")
    if killed:
        message = "did not stop within launcher.grace_s and was killed; what was not yet in a checkpoint is lost"
        return _failed(message, first=first, victims=victims)
    if status == PREEMPTED_EXIT:
        message = verdict.message if verdict and verdict.message else "stopped on request; the state is saved"
        state: State = "stopped" if stop_reason else "preempted"
        return Outcome(
            state=state, exit_code=PREEMPTED_EXIT, message=f"{message} ({stop_reason})" if stop_reason else message
        )
    if stop_reason and verdict is None and first is None and status in (-signal.SIGTERM, 128 + signal.SIGTERM):
        return Outcome(
            state="stopped",
            exit_code=PREEMPTED_EXIT,
            message=f"stopped before the first step; there was nothing new to save ({stop_reason})",
        )
    # A rank may have found the spec (3) or a plugin (4) at fault; everything else is a failed run.
    code = verdict.exit_code if verdict and verdict.exit_code in _OWN_CODES else LaunchError.exit_code
    return _failed(_message(run, status, verdict, first), first=first, victims=victims, exit_code=code)


def judge_hang(run: RunFolder, attempt: int, *, hung: str) -> Outcome:
    """Turn an attempt that was ended because it hung into an outcome.

    Args:
        run: The run folder.
        attempt: Number of the attempt.
        hung: What was seen.
    """
    folder = run.attempt(attempt)
    silent = silent_ranks(folder)
    message = f"{hung}; stacks of the ranks: {folder}/stacks-node-*.txt"
    if silent:
        message = f"rank {', '.join(map(str, silent))} did not even answer (stopped, or inside the kernel); {message}"
    first = RankFailure(rank=silent[0] if silent else None, kind="hang", error=message)
    return _failed(message, first=first, victims=())


def _failed(
    message: str, *, first: RankFailure | None, victims: tuple[int, ...], exit_code: int = LaunchError.exit_code
) -> Outcome:
    return Outcome(state="failed", exit_code=exit_code, message=message, first_failure=first, victims=victims)


def _message(run: RunFolder, status: int, verdict: Verdict | None, first: RankFailure | None) -> str:
    if verdict is not None and verdict.message:
        return verdict.message
    if status < 0:
        agent = f"agent killed by {_signal_name(-status)}"
    else:
        agent = f"agent ended with status {status} and left no verdict"
        last = _last_line(run.agent_log)
        agent += f": {last}" if last else ""
    if first is not None:
        return f"{describe(first)}; {agent}"
    return f"{agent}; see {run.agent_log}"


def describe(failure: RankFailure) -> str:
    """Word a failure in one line: ``rank 3: RuntimeError: message``."""
    who = "agent" if failure.rank is None else f"rank {failure.rank}"
    return f"{who}: {failure.error.strip() or failure.kind or 'failed'}"


def _earliest_failure(run: RunFolder, attempt: int) -> RankFailure | None:
    """Return the first failure by time among the ranks' own reports (the agent did not live to judge)."""
    found = [load_record(path, RankFailure) for path in run.attempt(attempt).glob("error-rank-*.json")]
    return min((failure for failure in found if failure), key=lambda failure: failure.time_utc, default=None)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip()[:300] if lines else ""
