"""Watch over one run: start its bundle, pass on stop requests, restart, and keep status.json true.

``python -m llama_scale.runs.supervisor RUN_DIR``. It has a session of its own, so that it outlives the shell, holds
the run folder's lock, and is the only writer of status.json. The agent ends when the supervisor dies, by whatever
cause: the kernel sends it SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llama_scale.checkpoint.manifest import newest_complete
from llama_scale.errors import LaunchError, LlamaScaleError
from llama_scale.launchers.base import Job, load_launcher
from llama_scale.launchers.processes import adopt_orphans, kill_all, list_marked, list_session, reap_children
from llama_scale.plan.run_plan import RunPlan
from llama_scale.runs.atomic import write_atomically
from llama_scale.runs.elastic import healthy_hosts, hosts_of, shrink
from llama_scale.runs.folder import ATTEMPT_VARIABLE, RUN_VARIABLE, RunFolder
from llama_scale.runs.hang import HangWatch
from llama_scale.runs.lock import RunLock
from llama_scale.runs.outcome import Outcome, judge, judge_hang
from llama_scale.runs.progress import last_step
from llama_scale.runs.reserve import give_back, set_aside, write_report
from llama_scale.runs.restart import decide_restart
from llama_scale.runs.start import new_status
from llama_scale.spec.load import load_run_spec
from llama_scale.spec.run import RunSpec

logger = logging.getLogger(__name__)

_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
"""Signals that ask a run to save and end; SIGUSR1 is what Slurm sends ahead of a time limit."""
_WAITED = _STOP_SIGNALS | {signal.SIGCHLD}
_POLL_S = 0.25
_HEARTBEAT_S = 2.0
_STACKS_S = 10.0
"""Time that ranks of a hung attempt get to write their stacks."""
_END_S = 15.0
"""Time that hosts get to end the ranks of a hung attempt, before the agent that reaches them is killed."""
_HOST_KINDS = ("node-lost", "infrastructure")
"""Failures after which a run may go on without a host."""
_MARGIN_S = (2.0, 10.0)
"""Least and most seconds over the grace, in which the agent kills ranks that hang and writes its verdict."""


class Supervisor:
    """Run the attempts of one run folder.

    Args:
        run: The folder; its lock is held by this process.
        spec: Its spec.
        plan: Its plan.
        settle: Has the last word on how the run ended, e.g. that a preempted one is queued again. With it, a signal
            to this process is a preemption: it comes from a scheduler, and users ask through the run folder.
    """

    def __init__(
        self, run: RunFolder, *, spec: RunSpec, plan: RunPlan, settle: Callable[[Outcome], Outcome] | None = None
    ) -> None:
        self._run = run
        self._settle = settle
        self._preempted_by: str | None = None
        self._spec = spec
        self._launcher = load_launcher(spec.launcher.kind)
        self._steps = plan.steps
        self._hung: str | None = None
        self._stop_reason: str | None = None
        self._status = new_status(state="starting", message="starting").model_copy(update={"steps": plan.steps})

    def supervise(self) -> int:
        """Run until the run has ended for good; return the exit code."""
        restarted_from: str | None = None
        while True:
            attempt = self._run.next_attempt()
            self._run.done.unlink(missing_ok=True)
            set_aside(self._run.path)
            self._update(state="starting", attempt=attempt, message="starting", sync=True)
            outcome = self._attempt(attempt)
            newest = self._newest()
            if outcome.state != "failed" or self._ending():
                return self._end(outcome)
            decision = decide_restart(
                self._spec.restart, restarts=self._status.restarts, restarted_from=restarted_from, newest=newest
            )
            if not decision.restart:
                if self._spec.restart.max:
                    logger.info("no restart: %s", decision.reason)
                return self._end(outcome)
            try:
                change = self._adapt_to_hosts(outcome)
            except LlamaScaleError as error:
                return self._end(replace(outcome, message=f"{outcome.message}; no restart: {error}"))
            reason = f"{decision.reason}; {change}" if change else decision.reason
            logger.warning("%s; %s", outcome.message, reason)
            restarted_from = newest or ""
            self._update(
                restarts=self._status.restarts + 1,
                message=f"{outcome.message}; {reason}",
                first_failure=outcome.first_failure,
                victims=outcome.victims,
            )

    def _adapt_to_hosts(self, outcome: Outcome) -> str:
        """Where the spec allows fewer hosts, remake the run for those that answer; return what changed, if anything.

        Raises:
            LlamaScaleError: Too few are left.
        """
        kind = outcome.first_failure.kind if outcome.first_failure else ""
        if self._spec.restart.min_nodes is None or kind not in _HOST_KINDS or not hosts_of(self._spec):
            return ""
        healthy = healthy_hosts(self._spec)
        if len(healthy) == len(hosts_of(self._spec)):
            return ""
        shrunk = shrink(self._run, self._spec, healthy=healthy)
        self._spec = shrunk.spec
        return shrunk.message

    def _attempt(self, attempt: int) -> Outcome:
        """Start the bundle once and wait for its end; no process of it is left afterwards."""
        marker = f"{RUN_VARIABLE}={self._run.path}"
        environment = os.environ | {RUN_VARIABLE: str(self._run.path), ATTEMPT_VARIABLE: str(attempt)}
        try:
            job = self._launcher.submit(
                self._run.path, bundle=self._run.bundle, environment=environment, log=self._run.agent_log
            )
        except LaunchError as error:
            return Outcome(state="failed", exit_code=error.exit_code, message=str(error))
        logger.info("attempt %d: agent %d", attempt, job.pid)
        self._update(state="running", agent_pid=job.pid, agent_pgid=job.pid, message="running", sync=True)
        self._hung = None
        status, killed = self._wait(job, marker=marker)
        self._clean_up(job, marker=marker)
        outcome = judge(self._run, attempt, status=status, stop_reason=self._stop_reason, killed=killed)
        if self._hung is not None:
            outcome = judge_hang(self._run, attempt, hung=self._hung)
        logger.info("attempt %d: status %d: %s: %s", attempt, status, outcome.state, outcome.message)
        return outcome

    def _wait(self, job: Job, *, marker: str) -> tuple[int, bool]:
        """Return the agent's exit status, and whether it had to be killed."""
        deadline: float | None = None
        killed = False
        heartbeat = time.monotonic() + _HEARTBEAT_S
        watch = HangWatch(self._spec.restart, steps=self._steps)
        while (status := job.poll()) is None:
            info = signal.sigtimedwait(_WAITED, _POLL_S)
            if info is not None and info.si_signo in _STOP_SIGNALS:
                self._note_signal(info.si_signo)
            now = time.monotonic()
            if deadline is None and self._ending():
                grace_s = self._spec.launcher.grace_s
                deadline = now + grace_s + min(max(grace_s, _MARGIN_S[0]), _MARGIN_S[1])
                self._update(
                    state="stopping", message=f"stopping ({self._stop_reason or self._preempted_by})", sync=True
                )
                os.kill(job.pid, signal.SIGTERM)  # not reaped yet: the id cannot be another process's
            elif deadline is not None and now > deadline and not killed:
                logger.error("the agent did not stop in time; killing its session")
                killed = True
                self._kill(job, marker=marker)
            if now > heartbeat:
                heartbeat = now + _HEARTBEAT_S
                self._update()
                if deadline is None and (hung := watch.look(last_step(self._run.metrics))):
                    self._hung = hung
                    deadline = now + self._end_hung(job)
        return status, killed

    def _end_hung(self, job: Job) -> float:
        """Have all ranks write down where they are, then end them; return the seconds until they are killed."""
        logger.error("%s; asking all ranks for their stacks", self._hung)
        attempt = self._run.attempt(self._status.attempt)
        os.kill(job.pid, signal.SIGUSR2)
        limit = time.monotonic() + _STACKS_S
        while len(list(attempt.glob("stacks-node-*.txt"))) < self._spec.cluster.nodes and time.monotonic() < limit:
            time.sleep(_POLL_S)
        try:
            (attempt / "end").touch()
        except OSError as error:  # then the agent that reaches the hosts is killed, and their leases run out
            logger.error("cannot write %s: %s", attempt / "end", error.strerror)
        return 0.0 if self._spec.launcher.kind == "local" else _END_S

    def _kill(self, job: Job, *, marker: str) -> None:
        pids = sorted({job.pid, *list_session(job.pid), *list_marked(marker)} - {os.getpid()})
        left = kill_all(pids)
        if left:
            logger.error("processes %s cannot be killed", left)

    def _clean_up(self, job: Job, *, marker: str) -> None:
        """Kill what the agent left behind (it may have been killed before it could end its ranks)."""
        left = sorted(({*list_session(job.pid), *list_marked(marker)}) - {os.getpid(), job.pid})
        if left:
            logger.warning("killing processes that the agent left behind: %s", left)
            kill_all(left)
        reap_children()

    def _stop_requested(self) -> bool:
        if self._stop_reason is None and self._run.stop.exists():
            self._stop_reason = "stop was requested"
        return self._stop_reason is not None

    def _ending(self) -> bool:
        """Tell whether the run is to end, on a user's or the scheduler's wish."""
        return self._stop_requested() or self._preempted_by is not None

    def _note_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        logger.info("got %s: stopping", name)
        if self._settle is not None:
            self._preempted_by = f"the scheduler sent {name}"
        else:
            self._stop_reason = self._stop_reason or f"the supervisor got {name}"

    def _newest(self) -> str | None:
        newest = newest_complete(self._run.checkpoints)
        return newest.name if newest else None

    def _end(self, outcome: Outcome) -> int:
        if self._settle is not None:
            outcome = self._settle(outcome)
        if outcome.state == "succeeded":
            write_atomically(self._run.done, f"{_utc()}\n")
        self._update(
            state=outcome.state,
            exit_code=outcome.exit_code,
            message=outcome.message,
            first_failure=outcome.first_failure,
            victims=outcome.victims,
            agent_pid=None,
            agent_pgid=None,
            sync=True,
        )
        give_back(self._run.path)
        # Only now: a `stop` that waits for the end has seen it, and `resume` must not stop at once.
        self._run.stop.unlink(missing_ok=True)
        return outcome.exit_code

    def _update(self, *, sync: bool = False, **changes: Any) -> None:
        """Change status.json; a disk that is full must not end a run that might still save itself."""
        line = last_step(self._run.metrics)
        changes |= {"step": line.step if line else 0, "checkpoint": self._newest(), "updated_utc": _utc()}
        self._status = self._status.model_copy(update=changes)
        text = self._status.model_dump_json(indent=2) + "\n"
        try:
            write_report(self._run.path, lambda: write_atomically(self._run.status, text, sync=sync))
        except OSError as error:
            logger.error("cannot write %s: %s", self._run.status, error.strerror)


def _utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def main(argv: Sequence[str] | None = None) -> int:
    """Supervise the run folder that the command line names; return the run's exit code."""
    parser = argparse.ArgumentParser(prog="python -m llama_scale.runs.supervisor", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_DIR")
    parser.add_argument("--lock-fd", type=int, help="open file that holds the run folder's lock already")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    run = RunFolder(arguments.run.absolute())
    hold_signals()
    return supervise_folder(run, take_lock=lambda: _lock(run, arguments.lock_fd))


def hold_signals() -> None:
    """Wait for signals instead of handling them: nothing can interrupt a write of status.json."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def release_signals() -> None:
    """End ``hold_signals``: what came meanwhile ends this process."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED)


def supervise_folder(
    run: RunFolder, *, take_lock: Callable[[], RunLock], settle: Callable[[Outcome], Outcome] | None = None
) -> int:
    """Supervise a run folder to its end; return the run's exit code.

    Args:
        run: The run folder.
        take_lock: Takes its lock, or raises LaunchError.
        settle: See ``Supervisor``.
    """
    lock: RunLock | None = None
    try:
        lock = take_lock()
        os.set_inheritable(lock.fd, False)
        adopt_orphans()
        spec = load_run_spec(run.spec)
        plan = RunPlan.from_json(run.plan.read_text(encoding="utf-8"))
        return Supervisor(run, spec=spec, plan=plan, settle=settle).supervise()
    except (OSError, LlamaScaleError) as error:
        return _give_up(run, error, owner=lock is not None)


def _lock(run: RunFolder, fd: int | None) -> RunLock:
    return RunLock(fd) if fd is not None else RunLock.acquire(run)


def _give_up(run: RunFolder, error: OSError | LlamaScaleError, *, owner: bool) -> int:
    """Say why nothing was started: in the log and, for the lock's owner, in status.json."""
    code = error.exit_code if isinstance(error, LlamaScaleError) else LaunchError.exit_code
    logger.error("cannot supervise %s: %s", run.path, error)
    if owner:
        status = new_status(state="failed", message=str(error), exit_code=code)
        text = status.model_dump_json(indent=2) + "\n"
        try:
            write_report(run.path, lambda: write_atomically(run.status, text))
        except OSError as problem:
            logger.error("cannot write %s: %s", run.status, problem.strerror)
    return code


if __name__ == "__main__":
    sys.exit(main())
