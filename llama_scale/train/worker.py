"""One rank of a run, also under plain torchrun: ``torchrun --nproc-per-node 4 -m llama_scale.train.worker RUN_DIR``.

The agent imports this module once and forks its ranks, which then call ``run_rank``.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Never

import torch

from llama_scale.errors import PREEMPTED_EXIT, LaunchError, LlamaScaleError
from llama_scale.plan.run_plan import RunPlan
from llama_scale.runs.folder import RunFolder
from llama_scale.runs.rank_logs import stands_for_itself
from llama_scale.spec.load import load_run_spec, spec_digest
from llama_scale.train import distributed, failures, noise, trackers
from llama_scale.train.checkpointing import Checkpointer, Position
from llama_scale.train.engine import Engine, make_engine, module_of
from llama_scale.train.log_limit import LogLimit
from llama_scale.train.loop import LoopParts, NonFiniteError, log_progress, train
from llama_scale.train.metrics import MetricsFile, StepRecord
from llama_scale.train.peak_memory import PeakMemory
from llama_scale.train.ports import rank_variables
from llama_scale.train.profile import StepProfiler, parse_steps
from llama_scale.train.samples import SampleSource, make_samples
from llama_scale.train.signals import Agreement, StopRequest
from llama_scale.train.starting import prepare_start
from llama_scale.train.statistics import make_gather
from llama_scale.train.throughput import flops_per_step, peak_flops
from llama_scale.train.validation import make_validation
from llama_scale.train.watch import STOP_SIGNALS

if TYPE_CHECKING:
    from llama_scale.plan.topology import Coordinates
    from llama_scale.spec.run import RunSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Hold what all ranks of an attempt share.

    Args:
        run_dir: The run folder.
        spec: Its spec.
        plan: Its plan.
        attempt: Number of the attempt, from 0.
        profile: Steps to trace, or None.
    """

    run_dir: Path
    spec: RunSpec
    plan: RunPlan
    attempt: int
    profile: tuple[int, int] | None = None

    @property
    def attempt_dir(self) -> Path:
        """Folder of the attempt's error files and verdict."""
        return self.run_dir / "attempts" / f"{self.attempt:03d}"


def load_job(run_dir: Path, *, attempt: int, profile: str | None) -> Job:
    """Read a run folder.

    Raises:
        LaunchError: It is no run folder, its plan is not its spec's, a tracker's package is missing, or ``profile`` is
            not ``N:M``.
        SpecError: Its spec is not valid.
    """
    run_dir = run_dir.absolute()
    for name in ("spec.yaml", "plan.json"):
        if not (run_dir / name).is_file():
            raise LaunchError(f"{run_dir} is no run folder: it has no {name}; `llama-scale launch SPEC` makes one")
    steps = None if profile is None else parse_steps(profile)
    spec = load_run_spec(str(run_dir / "spec.yaml"))
    trackers.check_packages(spec.tracking)
    plan = RunPlan.from_json((run_dir / "plan.json").read_text(encoding="utf-8"))
    if plan.spec_digest != spec_digest(spec):
        raise LaunchError(
            f"{run_dir}: plan.json was not made from this spec.yaml; one of them was changed after the launch. Start "
            "with `llama-scale launch`, or change a run with `llama-scale resume RUN --set key=value`"
        )
    return Job(run_dir=run_dir, spec=spec, plan=plan, attempt=attempt, profile=steps)


def take_stop_signals(job: Job, *, rank: int) -> StopRequest:
    """Begin to remember stop signals instead of dying of them."""
    stop = StopRequest(job.run_dir / "stop" if rank == 0 else None)
    stop.install()
    return stop


def run_rank(job: Job, *, stop: StopRequest, tee: int | None = None) -> int:
    """Train as the rank that the environment says; return 0, or 75 if stopped on request.

    A failure does not return: the rank writes its error file and its log and leaves at once, for waiting for
    peers that wait for it would hang.

    Args:
        job: What to do.
        stop: From ``take_stop_signals``.
        tee: File descriptor that the log goes to as well.
    """
    try:
        return _run(job, stop=stop, tee=tee)
    except Exception as error:  # whatever it is, the run folder must name it
        fail(job.attempt_dir, error, rank=int(os.environ.get("RANK", "0")))


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def fail(attempt_dir: Path | None, error: BaseException, *, rank: int) -> Never:
    """Write down why this rank ends, and end it without any clean-up."""
    found = failures.report(error, rank=rank)
    # The log has the traceback in any case; the report leaves it out where only the message helps.
    sys.stderr.write("".join(traceback.format_exception(error)))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if attempt_dir is not None and failures.speaks(found.kind, local_rank=_local_rank(), world_size=world_size):
        try:
            failures.write_report(attempt_dir, found)
        except OSError as problem:
            sys.stderr.write(f"cannot write {failures.error_path(attempt_dir, rank)}: {problem}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(failures.exit_code(error))


def _run(job: Job, *, stop: StopRequest, tee: int | None) -> int:
    spec, plan = job.spec, job.plan
    noise.silence()
    set_threads()
    # Before the process groups: this import knows which warnings of Megatron-Core to leave out.
    importlib.import_module(module_of(spec.engine.kind))
    coordinates = distributed.initialize(
        plan.topology,
        device=spec.cluster.device,
        timeout_s=spec.train.timeout_s,
        virtual_stages=spec.parallel.virtual_stages,
    )
    rank = int(os.environ.get("RANK", "0"))
    configure_logging(coordinates, rank=rank, tee=tee)
    samples = make_samples(spec, split="train", run_dir=job.run_dir)
    memory = PeakMemory(spec.cluster.device)
    engine = make_engine(spec, plan)
    outcome = _train(job, engine=engine, samples=samples, coordinates=coordinates, stop=stop)
    if coordinates.dp_rank == coordinates.tp_rank == 0:  # one rank stands for its stage
        memory.write(RunFolder(job.run_dir).memory_file(job.attempt, rank), spec_digest=plan.spec_digest)
    engine.close()
    distributed.shutdown()
    return PREEMPTED_EXIT if outcome == "preempted" else 0


def _train(job: Job, *, engine: Engine, samples: SampleSource, coordinates: Coordinates, stop: StopRequest) -> str:
    spec, plan = job.spec, job.plan
    rank = int(os.environ.get("RANK", "0"))
    keeps_log = stands_for_itself(local_rank=_local_rank(), world_size=plan.topology.world_size)
    checkpointer = Checkpointer(job.run_dir / "checkpoints", spec=spec, plan=plan, run_dir=job.run_dir)
    logger.info("%s: %s", "weights" if plan.base_trainable else "frozen base", checkpointer.start.record.words())
    position = checkpointer.resume(engine)
    if position is None:
        position = Position(step=0, samples=0)
        if checkpointer.warm_start(engine):
            record = checkpointer.start.record
            logger.info("started from the weights of %s", record.adapters or record.name or record.path)
    if rank == 0 and checkpointer.started_from is not None:
        _keep_origin(job.run_dir, checkpointer.started_from)
    if position.step:
        logger.info("resumed after step %d (%d samples)", position.step, position.samples)
    with ExitStack() as stack:
        parts = LoopParts(
            engine=engine,
            checkpointer=checkpointer,
            train_batch=lambda first: samples.global_batch(
                first, batch=plan.batch, dp_rank=coordinates.dp_rank, dp_size=plan.topology.dp_size
            ),
            validate=make_validation(spec, plan, engine, dp_rank=coordinates.dp_rank, run_dir=job.run_dir),
            stop_wish=lambda: stop.reason is not None,
            agree=Agreement().any,
            sinks=_make_sinks(job, position, stack) if rank == 0 else [],
            profiler=StepProfiler(job.profile, folder=job.run_dir / "profile", rank=rank),
            flops_per_step=flops_per_step(plan),
            peak_flops=peak_flops(spec, plan),
            statistics=make_gather(spec, engine),
            tidy=LogLimit() if keeps_log else None,
        )
        try:
            outcome = train(spec, plan, parts, position=position)
        except NonFiniteError:  # on all ranks alike: a save under way is good and can still end
            checkpointer.wait()
            raise
    checkpointer.close()
    if outcome == "preempted":
        logger.info("stopped on request (%s); the checkpoint is saved", stop.reason or "of another rank")
    return outcome


def _keep_origin(run: Path, started_from: Path) -> None:
    """Keep tokenizer, settings and stop tokens of the start with the run; training goes on where they cannot be."""
    from llama_scale.convert.origin import keep_with  # lazy: one rank, of runs that start from weights

    try:
        keep_with(run, made_of=started_from)
    except (LlamaScaleError, OSError) as error:
        logger.warning("what came with the model in %s is not kept with the run: %s", started_from, error)


def _make_sinks(job: Job, position: Position, stack: ExitStack) -> list[Callable[[StepRecord], None]]:
    """Open everything that records steps; ``stack`` closes it."""
    metrics = stack.enter_context(MetricsFile(job.run_dir / "metrics.jsonl", resumed_step=position.step))
    sinks = [metrics.write, log_progress(steps=job.plan.steps, every=job.spec.tracking.log_every_steps)]
    for tracker in trackers.make_trackers(job.spec, run_dir=job.run_dir, resumed_step=position.step):
        stack.callback(tracker.close)
        sinks.append(tracker.log)
    return sinks


def set_threads() -> None:
    """Share this host's cores among its ranks, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def configure_logging(coordinates: Coordinates, *, rank: int, tee: int | None = None) -> None:
    """Log to stderr with the rank's place in front; rank 0 speaks at INFO, the others at WARNING."""
    place = f"[dp{coordinates.dp_rank} pp{coordinates.pp_rank} tp{coordinates.tp_rank}]"
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if tee is not None:
        handlers.append(logging.StreamHandler(os.fdopen(tee, "w", buffering=1)))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=f"%(asctime)s {place} %(message)s",
        datefmt="%H:%M:%S",
        handlers=handlers,
        force=True,
    )


_ALONE = rank_variables(0, world=1, port=0)
"""Environment of a process that nobody started as one of several; port 0 is any free one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank; rank, world size and rendezvous come from torchrun's environment variables."""
    parser = argparse.ArgumentParser(prog="python -m llama_scale.train.worker", description=main.__doc__)
    # Both ways: torchrun takes --run for an abbreviation of its own --run-path, and refuses.
    run = parser.add_mutually_exclusive_group(required=True)
    run.add_argument("run", type=Path, nargs="?", metavar="RUN_DIR", help="run folder: spec.yaml, plan.json")
    run.add_argument("--run", type=Path, metavar="RUN_DIR", dest="named_run", help="the same, not under torchrun")
    parser.add_argument("--profile", metavar="N:M", help="write a torch profiler trace of steps N to M")
    options = parser.parse_args(argv)
    run_dir: Path = options.run or options.named_run
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    attempt = int(os.environ.get("LLAMA_SCALE_ATTEMPT", "0"))
    rank = int(os.environ.get("RANK", "0"))
    try:
        job = load_job(run_dir, attempt=attempt, profile=options.profile)
        if rank == 0:  # the others wait for it where the ranks meet
            prepare_start(job.run_dir, job.spec, job.plan)
    except Exception as error:
        folder = run_dir / "attempts" / f"{attempt:03d}" if run_dir.is_dir() else None
        fail(folder, error, rank=rank)
    code = run_rank(job, stop=take_stop_signals(job, rank=rank))
    # A stop signal that comes late must not kill a rank that has saved: an interpreter that ends gives up its handlers.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(main())
