"""Talk to Slurm through its commands: sbatch, squeue, scontrol, scancel."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import llama_scale.launchers.environment as variables
from llama_scale.errors import LaunchError
from llama_scale.launchers.queue import JobPhase, JobView, call
from llama_scale.spec.launcher_slurm import SlurmLauncher
from llama_scale.spec.run import RunSpec

_call = functools.partial(
    call, absent="call llama-scale on a machine of the Slurm cluster", timeout_s=30.0, folder=Path("/")
)
_SCHEDULERS_OWN = ("SLURM_CONF", "SLURM_CLUSTERS")
"""What the commands themselves need to find the scheduler, beside what a job gets."""
_WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
_RUNNING = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}
)


class SlurmQueue:
    """See ``Queue``. Names of jobs are Slurm's numbers."""

    cancel_saves = False

    def submit(self, run: Path, *, bundle: Path, spec: RunSpec, environment: Mapping[str, str]) -> tuple[str, ...]:
        """Queue ``job.sh``, as many times as ``chain`` says, each after the one before."""
        names = (bundle / "forward").read_text(encoding="utf-8")
        # sbatch passes on all of its own environment, so it gets what the job is to have and nothing else.
        passed = variables.forwarded(environment, names + "\n".join(_SCHEDULERS_OWN))
        assert isinstance(spec.launcher, SlurmLauncher), "the caller has looked at launcher.kind"
        jobs: list[str] = []
        try:
            for _ in range(spec.launcher.chain):
                words = ["--parsable", "--chdir=/", f"--output={output_pattern(run / 'logs' / 'supervisor.log')}"]
                if jobs:
                    words.append(f"--dependency=afterany:{jobs[-1]}")
                printed = _call("sbatch", *words, str(bundle / "job.sh"), str(run), environment=passed)
                jobs.append(printed.strip().splitlines()[-1].partition(";")[0])
        except LaunchError:
            if jobs:
                self.cancel(jobs)
            raise
        return tuple(jobs)

    def look(self, jobs: Sequence[str]) -> JobView:
        """Return how the jobs are doing, from what Slurm remembers (minutes), else from its accounting."""
        try:
            states = {job: job_state(job) for job in jobs}
        except LaunchError as error:
            return JobView(phase="unknown", words=str(error))
        for phase, group in (("running", _RUNNING), ("waiting", _WAITING)):
            for job, (state, reason) in states.items():
                if state in group:
                    kind: JobPhase = "running" if phase == "running" else "waiting"
                    return JobView(phase=kind, words=f"Slurm job {job} is {state}{reason}")
        last, (state, reason) = list(states.items())[-1]
        told = [(job, found) for job, found in states.items() if found[0]]
        if told:
            last, (state, reason) = told[-1]
        return JobView(
            phase="ended", words=f"Slurm job {last} ended as {state}{reason}" if state else "no longer known"
        )

    def cancel(self, jobs: Sequence[str], *, waiting_only: bool = False) -> None:
        """Cancel jobs."""
        if jobs:
            _call("scancel", *(["--state=PENDING"] if waiting_only else []), *jobs)


def job_state(job: str) -> tuple[str, str]:
    """Return Slurm's state of a job and its reason (``" (Priority)"``); two empty texts if it knows no such job.

    Raises:
        LaunchError: Slurm cannot be asked.
    """
    try:
        shown = _call("scontrol", "--oneliner", "show", "job", job)
    except LaunchError as error:
        if "Invalid job id" not in str(error):
            raise
        return _accounted_state(job), ""
    state = re.search(r"\bJobState=(\S+)", shown)
    reason = re.search(r"\bReason=(\S+)", shown)
    why = f" ({reason[1]})" if reason and reason[1] != "None" else ""
    return (state[1] if state else "", why)


def _accounted_state(job: str) -> str:
    """Return the state of a job that the controller has forgotten; empty without accounting."""
    try:
        words = _call("sacct", "-X", "-n", "-P", "-j", job, "-o", "State").split()
    except LaunchError:
        return ""
    return words[0] if words else ""


def requeue(job: str) -> None:
    """Put a running job back into the queue; Slurm ends what runs of it.

    Raises:
        LaunchError: Slurm refuses.
    """
    _call("scontrol", "requeue", job)


def output_pattern(path: Path) -> str:
    r"""Return a file name as ``sbatch --output`` takes it: ``%`` begins a field there, and ``\`` turns fields off.

    >>> output_pattern(Path("/runs/50%/log"))
    '/runs/50%%/log'
    """
    return str(path).replace("%", "%%")
