"""Start a run folder's supervisor, then follow the run or leave it."""

from __future__ import annotations

import shlex
import sys
import time

from llama_scale.cli.follow import conclude, follow
from llama_scale.cli.output import emit, say
from llama_scale.launchers.base import load_launcher
from llama_scale.launchers.queue import Queue, queue_of
from llama_scale.plan.run_plan import RunPlan
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.lock import RunLock
from llama_scale.runs.progress import StepFollower
from llama_scale.runs.records import ENDED
from llama_scale.runs.start import start_supervisor
from llama_scale.runs.submission import enqueue
from llama_scale.runs.view import GONE, look
from llama_scale.spec.run import RunSpec

_DETACH_S = 20.0
"""How long --detach waits to see that the supervisor has started the agent."""


def _announce(run: RunFolder, plan: RunPlan) -> None:
    topology = plan.topology
    say(
        f"run {run.name}: {topology.world_size} processes (data {topology.dp_size} x tensor {topology.tp_size} x "
        f"pipeline {topology.pp_size}), {plan.steps} steps"
    )
    start = run.load_start()
    if start is not None:
        say(f"{'weights' if plan.base_trainable else 'frozen base'}: {start.words()}")
    if not sys.stdout.isatty():  # else the line below is seen as well
        say(f"run folder: {run.path}")
    emit(str(run.path))


def _enqueue(run: RunFolder, *, spec: RunSpec, plan: RunPlan, queue: Queue, lock: RunLock) -> int:
    """Hand the run to a scheduler and leave it; the job needs the lock as soon as it starts."""
    try:
        submission = enqueue(run, spec=spec, queue=queue)
    finally:
        lock.release()
    _announce(run, plan)
    jobs = f"job{'s' if len(submission.jobs) > 1 else ''} {', '.join(submission.jobs)}"
    say(f"queued as {spec.launcher.kind} {jobs}; it goes on without this machine")
    name = shlex.quote(str(run.path))
    say(f"see it with: llama-scale status {name}; follow it with: llama-scale logs {name} -f")
    return 0


def begin(run: RunFolder, *, spec: RunSpec, plan: RunPlan, detach: bool, lock: RunLock | None = None) -> int:
    """Start a run (or start it again); return the exit code of the command.

    Args:
        run: The run folder.
        spec: Its spec.
        plan: Its plan.
        detach: Return once it runs. A run that a scheduler gets is always left.
        lock: The folder's lock, if the caller holds it already.

    Raises:
        LaunchError: It could not be started, or failed while it was followed.
    """
    queue = queue_of(load_launcher(spec.launcher.kind))
    lock = lock or RunLock.acquire(run)
    if queue is not None:
        return _enqueue(run, spec=spec, plan=plan, queue=queue, lock=lock)
    run.submission.unlink(missing_ok=True)
    metrics = StepFollower(run.metrics)
    start_supervisor(run, lock=lock)
    _announce(run, plan)
    if not detach:
        return follow(
            run,
            steps=plan.steps,
            every=spec.tracking.log_every_steps,
            grace_s=spec.launcher.grace_s,
            metrics=metrics,
        )
    deadline = time.monotonic() + _DETACH_S
    while (view := look(run)).state == "starting" and time.monotonic() < deadline:
        time.sleep(0.05)
    if view.state == GONE or view.state in ENDED:
        return conclude(view)
    say(f"detached; follow it with: llama-scale logs {shlex.quote(str(run.path))} -f")
    return 0
