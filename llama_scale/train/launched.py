"""Watch over one rank that another launcher starts: start the worker, pass stop requests on, tell how it ended.

    python -m llama_scale.train.launched JOB

The launcher has set RANK, WORLD_SIZE, LOCAL_RANK and the rendezvous. The worker runs with the run's own variables,
writes into its own log, gets stop requests, and is killed when the agent wants it or has gone. No torch in here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from llama_scale.errors import PREEMPTED_EXIT
from llama_scale.train.rank_records import (
    Control,
    LeaseWatch,
    RankJob,
    RankRecord,
    out_of_memory_kills,
    parse_environment,
    rank_environment,
)
from llama_scale.train.watch import STOP_SIGNALS

_STOP = frozenset({*STOP_SIGNALS, signal.SIGHUP})
_POLL_S = 0.25
_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank; return 0 if it ended well or saved and stopped, so that the launcher lets the others finish."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        (word,) = arguments
        job = RankJob.decode(word)
        rank = int(os.environ["RANK"])
    except (ValueError, TypeError, KeyError):
        sys.stderr.write("usage: RANK=... python -m llama_scale.train.launched JOB; launch.sh of a bundle calls it\n")
        return 2
    # Waited for, not handled: the worker inherits them blocked, and lets them in once it can save.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP | {signal.SIGCHLD})
    record = RankRecord.begin(rank)
    control = Control(job.attempt_dir)
    if control.stop.exists() or control.end.exists():
        _write(record.end(PREEMPTED_EXIT), job)  # before it began: there is nothing to save
        return 0
    _write(record, job)  # from here on the agent counts on a worker that answers to a stop
    kills = out_of_memory_kills()
    try:
        with control.held():
            code, by_agent = _watch(_start(job, rank=rank), control, lease_s=job.lease_s)
    except OSError as error:
        sys.stderr.write(f"rank {rank} on {record.host} cannot start: {error}\n")
        _write(record.end(1), job)
        return 1
    _write(record.end(code, by_agent=by_agent, out_of_memory=out_of_memory_kills() > kills), job)
    if code in (0, PREEMPTED_EXIT):
        return 0
    return code if code > 0 else 128 - code


def _start(job: RankJob, *, rank: int) -> subprocess.Popen[bytes]:
    """Start the worker with its own log and environment; it dies with this process."""
    assignments = parse_environment(Path(job.environment).read_text(encoding="utf-8"))
    values = rank_environment(os.environ, assignments, cores=len(os.sched_getaffinity(0)))
    logs = Path(job.run) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    own_pid = os.getpid()

    def die_with_parent() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != own_pid:  # it died before the line above
            os._exit(1)

    with (logs / f"rank-{rank:05d}.log").open("ab") as log:
        return subprocess.Popen(
            # -P: nothing in the folder that the launcher stands in may be imported by accident.
            [sys.executable, "-P", "-m", "llama_scale.train.worker", "--run", job.run],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=values,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - this process has one thread
        )


def _watch(child: subprocess.Popen[bytes], control: Control, *, lease_s: float) -> tuple[int, bool]:
    """Wait for the worker; return its exit status (minus a signal), and whether it was killed on request."""
    lease = LeaseWatch(control, lease_s=lease_s)
    asked, killed = False, False
    while (code := child.poll()) is None:
        info = signal.sigtimedwait(_STOP | {signal.SIGCHLD}, _POLL_S)
        stop = control.stop.exists() or (info is not None and info.si_signo in _STOP)
        if stop and not asked:
            asked = True
            child.send_signal(signal.SIGTERM)
        if not killed and (control.end.exists() or lease.expired()):
            killed = True
            child.kill()
    return code, killed and code == -signal.SIGKILL


def _write(record: RankRecord, job: RankJob) -> None:
    try:
        record.write(job.attempt_dir)
    except OSError as error:  # a full disk must not end a rank that can still save itself
        sys.stderr.write(f"rank {record.rank}: cannot write its record: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
