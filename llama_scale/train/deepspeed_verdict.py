"""Judge how an attempt under the ``deepspeed`` command ended."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field, replace
from pathlib import Path

from llama_scale.errors import PREEMPTED_EXIT, LaunchError, LlamaScaleError
from llama_scale.spec.nearby import some
from llama_scale.train import failures
from llama_scale.train.rank_records import RankRecord
from llama_scale.train.verdict import FirstFailure, Verdict, judge_failure
from llama_scale.train.watch import Death

_GOOD = (0, PREEMPTED_EXIT)


@dataclass(slots=True, kw_only=True)
class Watched:
    """What was seen of an attempt.

    Args:
        records: Ranks by number.
        status: Exit status of the command, minus the signal that ended it.
        killed: The command was killed by this process.
        command_first: The command ended by itself before any rank had failed. What ranks say afterwards, while they
            are ended one after the other, is that they lost each other.
        stopped: Name of the stop signal that came, if any.
        stopped_early: It came before there were all ranks, so nothing could be saved.
        stop_timed_out: Ranks did not save and leave in time.
    """

    records: dict[int, RankRecord] = field(default_factory=dict)
    status: int | None = None
    killed: bool = False
    command_first: bool = False
    stopped: str | None = None
    stopped_early: bool = False
    stop_timed_out: bool = False


def refused(error: LlamaScaleError) -> Verdict:
    """Return the verdict of an attempt that was not started."""
    failure = FirstFailure(rank=None, kind=failures.classify(error), error=str(error))
    return Verdict(state="failed", exit_code=error.exit_code, first_failure=failure, message=str(error))


def judge(watched: Watched, attempt_dir: Path, *, world_size: int) -> Verdict:
    """Return the verdict of an attempt whose command has ended; its exit status alone proves nothing.

    Args:
        watched: What was seen.
        attempt_dir: Where ranks left their errors.
        world_size: Ranks that the run has.
    """
    if watched.stopped_early:
        message = f"stopped by {watched.stopped} before training began; nothing had to be saved"
        return Verdict(state="preempted", exit_code=PREEMPTED_EXIT, message=message)
    records = watched.records
    codes = {rank: record.exit_code for rank, record in records.items()}
    if len(codes) == world_size and all(code in _GOOD for code in codes.values()):
        if PREEMPTED_EXIT in codes.values():
            return Verdict(
                state="preempted", exit_code=PREEMPTED_EXIT, message="stopped on request; the state is saved"
            )
        return Verdict(state="ok", exit_code=0, message="done")
    reports = failures.read_reports(attempt_dir)
    deaths = [
        Death(
            local_rank=rank,
            time_utc=record.ended_utc or failures.now_utc(),
            # A rank without a last word hangs, or its host is gone: no witness saw it die, and it was to be ended.
            exit_code=-signal.SIGKILL if record.exit_code is None else record.exit_code,
            by_agent=record.by_agent or record.exit_code is None,
        )
        for rank, record in records.items()
        if record.exit_code not in _GOOD
    ]
    # After the command's own end, ranks that say they lost each other are its victims too.
    told = {report.rank for report in reports if watched.command_first and report.kind == "collateral"}
    nobody_failed = len(told) == len(reports) and all(death.by_agent or death.local_rank in told for death in deaths)
    if nobody_failed and not watched.stop_timed_out:
        return _command_failed(watched, world_size=world_size)
    verdict = judge_failure(
        reports,
        deaths,
        first_rank=0,
        ranks=world_size,
        out_of_memory=any(record.out_of_memory for record in records.values()),
        stop_timed_out=watched.stop_timed_out,
    )
    return _name_host(verdict, watched)


def _command_failed(watched: Watched, *, world_size: int) -> Verdict:
    """Return the verdict of a command that ended by itself while no rank had failed."""
    missing = [rank for rank in range(world_size) if rank not in watched.records]
    running = [rank for rank, record in sorted(watched.records.items()) if record.exit_code not in _GOOD]
    status = watched.status or 0
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    what = f"rank {some(running)} still ran" if running else f"rank {some(missing)} had not been started"
    error = f"the deepspeed command {how} while {what}; the agent's log has what it printed"
    failure = FirstFailure(rank=None, kind="crash", error=error)
    return Verdict(
        state="failed",
        exit_code=LaunchError.exit_code,
        first_failure=failure,
        victims=tuple(running),
        message=error,
    )


def _name_host(verdict: Verdict, watched: Watched) -> Verdict:
    """Add the host of the first failure to a verdict if there are several."""
    failure = verdict.first_failure
    if failure is None or failure.rank is None or len({record.host for record in watched.records.values()}) < 2:
        return verdict
    record = watched.records.get(failure.rank)
    if record is None:
        return verdict
    return replace(verdict, message=f"{verdict.message} [rank {failure.rank} ran on {record.host}]")
