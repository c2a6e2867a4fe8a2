"""The script of a Slurm job: supervise the run from its first node, and queue it again when it was preempted.

    python -m llama_scale.runs.slurm_job RUN_DIR

``job.sh`` of a bundle becomes this. The login machine is not needed any more: state is in the run folder and in Slurm.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llama_scale.checkpoint.manifest import newest_complete
from llama_scale.errors import PREEMPTED_EXIT, LaunchError
from llama_scale.launchers.slurm_queue import SlurmQueue, job_state, requeue
from llama_scale.runs.atomic import write_atomically
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.lock import RunLock
from llama_scale.runs.outcome import Outcome
from llama_scale.runs.records import Status, Submission, load_record
from llama_scale.runs.submission import load_submission
from llama_scale.runs.supervisor import hold_signals, release_signals, supervise_folder
from llama_scale.spec.load import load_run_spec

logger = logging.getLogger(__name__)

_LOCK_PATIENCE_S = 120.0
"""The node of an earlier job may have died with the lock; file servers take up to their lease to notice."""
_LEAVE_S = 120.0
"""Slurm ends this process after a requeue; it must not exit by itself before, which would end the job."""
MAX_IDLE = 3
"""Times that a run is queued again without a new checkpoint."""
_OVER = frozenset({"succeeded", "failed", "stopped"})
"""States after which the rest of a chain has nothing to do."""


class SlurmJob:
    """One job of a run.

    Args:
        run: The run folder.
        job: Slurm's number of this job.
        may_requeue: The spec lets it.
    """

    def __init__(self, run: RunFolder, *, job: str, may_requeue: bool) -> None:
        self._run = run
        self._job = job
        self._may_requeue = may_requeue
        self._queue = SlurmQueue()
        self.requeue_wanted = False

    def rest(self) -> tuple[str, ...]:
        """Return the jobs of the chain after this one."""
        submission = load_submission(self._run)
        jobs = submission.jobs if submission else ()
        return jobs[jobs.index(self._job) + 1 :] if self._job in jobs else ()

    def cancel_rest(self) -> None:
        """Take the rest of the chain out of the queue."""
        try:
            self._queue.cancel(self.rest(), waiting_only=True)
        except LaunchError as error:
            logger.warning("cannot cancel the rest of the chain: %s", error)

    def settle(self, outcome: Outcome) -> Outcome:
        """Say what a preempted run does next; see ``Supervisor``."""
        lost = outcome.first_failure is not None and outcome.first_failure.kind == "node-lost"
        running = outcome.state not in ("preempted", "failed") or self._state() == "RUNNING"
        if outcome.state == "failed" and (lost or not running):
            # Not the run's own fault: Slurm is ending the job, e.g. for a node that it lost, or is about to notice.
            outcome = replace(outcome, state="preempted", exit_code=PREEMPTED_EXIT)
        if outcome.state != "preempted":
            self.cancel_rest()
            return outcome
        if not running:
            # Slurm ends the job already: somebody cancelled it, or Slurm queues it again by itself; it does not say
            # which until then, and a requeue would revive a cancelled job.
            return replace(outcome, message=f"{outcome.message} (Slurm ends job {self._job})")
        if self.rest():
            message = f"{outcome.message}; job {self.rest()[0]} goes on"
            return replace(outcome, state="queued", message=message)
        if not self._may_requeue:
            return outcome
        return self._requeue(outcome)

    def _requeue(self, outcome: Outcome) -> Outcome:
        submission = load_submission(self._run) or Submission(launcher="slurm", jobs=(self._job,), submitted_utc="")
        newest = newest_complete(self._run.checkpoints)
        name = newest.name if newest else ""
        idle = submission.idle_requeues + 1 if submission.requeued_from == name else 0
        if idle >= MAX_IDLE:
            message = f"{outcome.message}; not queued again: {idle} times in a row no checkpoint was completed"
            return replace(outcome, message=message)
        changed = submission.model_copy(update={"idle_requeues": idle, "requeued_from": name})
        write_atomically(self._run.submission, changed.model_dump_json(indent=2) + "\n")
        self.requeue_wanted = True
        return replace(outcome, state="queued", message=f"{outcome.message}; job {self._job} is queued again")

    def _state(self) -> str:
        try:
            return job_state(self._job)[0]
        except LaunchError as error:
            logger.warning("Slurm cannot be asked: %s", error)
            return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job of a run; return the run's exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    (folder,) = sys.argv[1:] if argv is None else argv
    run = RunFolder(Path(folder).absolute())
    number = os.environ.get("SLURM_JOB_ID", "")
    if not number:
        logger.error("SLURM_JOB_ID is not set; `sbatch job.sh RUN_DIR` starts this")
        return LaunchError.exit_code
    hold_signals()
    status = load_record(run.status, Status)
    logger.info("job %s, start %s of it", number, int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1)
    if status is not None and status.state in _OVER:
        logger.info("nothing left to do: %s: %s", status.state, status.message)
        return 0
    return _supervise(run, number)


def _supervise(run: RunFolder, number: str) -> int:
    launcher = load_run_spec(run.spec).launcher
    job = SlurmJob(run, job=number, may_requeue=launcher.kind == "slurm" and launcher.requeue)
    code = supervise_folder(run, take_lock=lambda: RunLock.acquire(run, patience_s=_LOCK_PATIENCE_S), settle=job.settle)
    if job.requeue_wanted:
        try:
            requeue(number)
            release_signals()
            time.sleep(_LEAVE_S)
        except LaunchError as error:
            logger.error("cannot queue job %s again: %s", number, error)
            _say_preempted(run, str(error))
    return code


def _say_preempted(run: RunFolder, why: str) -> None:
    status = load_record(run.status, Status)
    if status is not None:
        changed = status.model_copy(update={"state": "preempted", "message": f"{status.message}, but {why}"})
        write_atomically(run.status, changed.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
