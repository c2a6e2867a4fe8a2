"""Say how an attempt ended: which rank failed first and which ranks only lost their peers."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llama_scale.errors import PREEMPTED_EXIT
from llama_scale.train.failures import ErrorReport, Kind, exit_code_of_kind, write_json
from llama_scale.train.watch import Death


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstFailure:
    """Name the rank that failed first.

    Args:
        rank: Global rank; None means the agent itself.
        kind: See ``failures.Kind``.
        error: One line.
        traceback: The whole of it; empty if the rank could not write one.
        time_utc: When it failed, as far as is known; ISO 8601.
    """

    rank: int | None
    kind: Kind
    error: str
    traceback: str = ""
    time_utc: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Hold ``attempts/NNN/verdict.json``.

    Args:
        state: How the attempt ended.
        exit_code: Exit status of the agent.
        first_failure: The culprit, if it failed.
        victims: Ranks that failed or were ended because of it.
        message: One line for people.
    """

    state: Literal["ok", "preempted", "failed"]
    exit_code: int
    first_failure: FirstFailure | None = None
    victims: tuple[int, ...] = ()
    message: str = ""

    def write(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        values: dict[str, Any] = asdict(self)
        values["victims"] = list(self.victims)
        write_json(path, values)

    def conclude(self, attempt_dir: Path, *, speaker: str) -> int:
        """Say it on stderr, write it into the attempt's folder as far as that works, and return the exit status."""
        sys.stderr.write(f"{speaker}: {self.state}: {self.message}\n")
        path = attempt_dir / "verdict.json"
        try:
            self.write(path)
        except OSError as error:
            sys.stderr.write(f"cannot write {path}: {error}\n")
        return self.exit_code


def judge_failure(
    reports: Sequence[ErrorReport],
    deaths: Sequence[Death],
    *,
    first_rank: int,
    ranks: int,
    out_of_memory: bool,
    stop_timed_out: bool = False,
) -> Verdict:
    """Find the first failure of an attempt.

    A rank that says it lost a peer is a victim. Among the others the earliest is the culprit: an error file counts
    from when it was written, a rank that died without one from when its death was seen. If all ranks that spoke are
    victims, the culprit is one that never spoke: it hung, or its host did.

    Args:
        reports: The error files, earliest first.
        deaths: Deaths on this host.
        first_rank: Global rank of this host's local rank 0.
        ranks: Ranks of this host.
        out_of_memory: The kernel killed processes for want of memory meanwhile.
        stop_timed_out: Ranks did not leave in time after a stop signal.
    """
    spoke = {report.rank for report in reports}
    failed = [death for death in deaths if death.exit_code not in _MEANT]
    silent = [death for death in failed if not death.by_agent and first_rank + death.local_rank not in spoke]
    candidates = [_of_report(report) for report in reports if report.kind != "collateral"]
    candidates += [_of_death(d, first_rank + d.local_rank, out_of_memory=out_of_memory) for d in silent]
    dead = {first_rank + d.local_rank for d in failed}
    culprit = min(candidates, key=lambda candidate: candidate.time_utc, default=None)
    if culprit is None:
        culprit = _unspoken(reports, range(first_rank, first_rank + ranks), stop_timed_out=stop_timed_out)
    victims = tuple(sorted((spoke | dead) - {culprit.rank}))
    who = "the agent" if culprit.rank is None else f"rank {culprit.rank}"
    message = f"{who} failed first: {culprit.error}"
    if victims:
        message += f" (victims: rank {', '.join(map(str, victims))})"
    return Verdict(
        state="failed",
        exit_code=exit_code_of_kind(culprit.kind),
        first_failure=culprit,
        victims=victims,
        message=message,
    )


_MEANT = (0, PREEMPTED_EXIT)


def _of_report(report: ErrorReport) -> FirstFailure:
    return FirstFailure(
        rank=report.rank, kind=report.kind, error=report.error, traceback=report.traceback, time_utc=report.time_utc
    )


def _of_death(death: Death, rank: int, *, out_of_memory: bool) -> FirstFailure:
    kind: Kind = "crash"
    if death.exit_code >= 0:
        error = f"exited with status {death.exit_code} without an error file; see its log"
    else:
        error = f"killed by {signal.Signals(-death.exit_code).name}"
    if death.exit_code == -signal.SIGKILL and out_of_memory:
        kind = "oom"
        error += ": the machine ran out of memory; use a smaller batch.micro, more ranks or recompute"
    elif death.exit_code == -signal.SIGKILL:
        error += ", by somebody or, if memory ran out, by the kernel (`dmesg` says so)"
    return FirstFailure(rank=rank, kind=kind, error=error, time_utc=death.time_utc)


def _unspoken(reports: Sequence[ErrorReport], ranks: range, *, stop_timed_out: bool) -> FirstFailure:
    spoke = {report.rank for report in reports}
    silent = [rank for rank in ranks if rank not in spoke]
    if stop_timed_out and silent:
        error = "did not save and leave in time after a stop signal, so it was killed"
        return FirstFailure(rank=silent[0], kind="crash", error=error)
    if silent and reports:
        error = f"did not answer (rank {reports[0].rank} waited for it: {reports[0].error}); it hung, or never started"
        return FirstFailure(rank=silent[0], kind="crash", error=error, traceback=reports[0].traceback)
    if reports:
        return _of_report(reports[0])
    return FirstFailure(rank=None, kind="crash", error="the ranks ended and none says why; see their logs")
