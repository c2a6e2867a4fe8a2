"""The processes of one host: import everything once, then fork the ranks through torchelastic.

    python -m llama_scale.train.agent --run RUN_DIR --nproc-per-node 4

Importing torch and an engine costs seconds of CPU time a process; forked ranks inherit it. The agent itself starts
no thread, CUDA context or process group before the fork: even the rendezvous' store is another process (``store.py``).
It ends with 0, 75 (stopped on request, saved), 3 or 5, and writes ``attempts/NNN/verdict.json``, which names the first
rank that failed apart from its victims.
"""

from __future__ import annotations

import os

# CUDA must not be initialised in a process that forks its users; NVML answers whether there are devices.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import argparse
import gc
import importlib
import logging
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from llama_scale.errors import PREEMPTED_EXIT, LaunchError, LlamaScaleError
from llama_scale.runs.rank_logs import RANK_LOGS
from llama_scale.train import failures
from llama_scale.train.node_report import NodeReport
from llama_scale.train.part_verdicts import part_path, read_parts
from llama_scale.train.ports import free_port
from llama_scale.train.rank_records import out_of_memory_kills
from llama_scale.train.verdict import FirstFailure, Verdict, judge_failure
from llama_scale.train.watch import STACKS_SIGNAL, STOP_SIGNALS, RankWatch

if TYPE_CHECKING:
    from llama_scale.train.store import StoreProcess
    from llama_scale.train.worker import Job

logger = logging.getLogger(__name__)

_OTHERS_S = 8.0
"""How long a host that lost its peers waits for the one that failed to say so."""


class _StoppedEarly(BaseException):
    """A stop signal came before there were ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Say which part of the run this host has.

    Args:
        nnodes: Hosts of the run.
        node_rank: This host's number.
        nproc_per_node: Ranks of each host.
        rdzv_endpoint: ``host:port`` of host 0; None: one host, any free port.
    """

    nnodes: int
    node_rank: int
    nproc_per_node: int
    rdzv_endpoint: str | None

    @property
    def is_large(self) -> bool:
        """Whether hosts keep to their own files, because there are so many of them."""
        return self.nnodes * self.nproc_per_node > RANK_LOGS

    @property
    def first_rank(self) -> int:
        """Global rank of this host's local rank 0."""
        return self.node_rank * self.nproc_per_node


def main(argv: Sequence[str] | None = None) -> int:
    """Run this host's ranks to their end and return the exit status."""
    options = _parser().parse_args(argv)
    attempt_dir = options.run / "attempts" / f"{options.attempt:03d}"
    for number in STOP_SIGNALS:
        signal.signal(number, _stop_early)
    signal.signal(STACKS_SIGNAL, signal.SIG_IGN)  # until there are ranks that have stacks
    try:
        verdict = _run(options, attempt_dir=attempt_dir)
    except _StoppedEarly as stop:
        message = f"stopped by {stop} before training began; nothing had to be saved"
        verdict = Verdict(state="preempted", exit_code=PREEMPTED_EXIT, message=message)
    except LlamaScaleError as error:
        failure = FirstFailure(rank=None, kind=failures.classify(error), error=str(error))
        verdict = Verdict(state="failed", exit_code=error.exit_code, first_failure=failure, message=str(error))
    if options.part:
        return _end_part(verdict, attempt_dir=attempt_dir, options=options)
    # Host 0's verdict is the run's.
    name = "verdict.json" if options.node_rank == 0 else part_path(attempt_dir, options.node_rank).name
    _announce(verdict, attempt_dir / name, run_dir=options.run)
    return verdict.exit_code


def _end_part(verdict: Verdict, *, attempt_dir: Path, options: argparse.Namespace) -> int:
    """Leave this host's verdict for the process above all agents; return the exit status for what started them.

    Those systems end all hosts when one exits with another status than 0, so a saved state is 0 to them, and hosts
    that only lost their peers wait until the others have spoken.
    """
    failure = verdict.first_failure
    if failure is not None and failure.kind == "collateral":
        deadline = time.monotonic() + _OTHERS_S
        few = options.nnodes <= RANK_LOGS  # in a large run all hosts would read all others' verdicts at once
        while time.monotonic() < deadline:
            if few and any(other.state == "failed" for other in read_parts(attempt_dir).values()):
                break
            time.sleep(0.2)
    _announce(verdict, part_path(attempt_dir, options.node_rank), run_dir=options.run)
    return 0 if verdict.exit_code == PREEMPTED_EXIT else verdict.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llama_scale.train.agent", description=main.__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="RUN_DIR", help="run folder: spec.yaml, plan.json")
    parser.add_argument("--nnodes", type=int, default=1, help="hosts of the run")
    parser.add_argument("--node-rank", type=int, default=0, help="number of this host")
    parser.add_argument("--nproc-per-node", type=int, help="ranks of each host; default: the plan's")
    parser.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where host 0 listens; needed with several hosts")
    parser.add_argument("--attempt", type=int, default=int(os.environ.get("LLAMA_SCALE_ATTEMPT", "0")), help="from 0")
    parser.add_argument("--part", action="store_true", help="leave the run's verdict to the process above all agents")
    parser.add_argument("--profile", metavar="N:M", help="write a torch profiler trace of steps N to M")
    parser.add_argument("--tee", action="store_true", help="show rank 0's log on stderr too")
    parser.add_argument(
        "--stop-grace-s", type=float, help="time to save and leave after a stop signal; default: launcher.grace_s"
    )
    return parser


def _stop_early(number: int, frame: FrameType | None) -> None:
    raise _StoppedEarly(signal.Signals(number).name)


def _run(options: argparse.Namespace, *, attempt_dir: Path) -> Verdict:
    from llama_scale.train import worker  # seconds; after the signal handlers are in place
    from llama_scale.train.starting import prepare_start

    job = worker.load_job(options.run, attempt=options.attempt, profile=options.profile)
    placement = Placement(
        nnodes=options.nnodes,
        node_rank=options.node_rank,
        nproc_per_node=options.nproc_per_node or job.plan.topology.world_size // options.nnodes,
        rdzv_endpoint=options.rdzv_endpoint,
    )
    _check(placement, world_size=job.plan.topology.world_size)
    logs = _prepare(job, placement, attempt_dir=attempt_dir, part=options.part)
    prepare_start(job.run_dir, job.spec, job.plan)
    _preload(job)
    grace_s = job.spec.launcher.grace_s if options.stop_grace_s is None else options.stop_grace_s
    watch = RankWatch(
        placement.nproc_per_node,
        stop_grace_s=grace_s,
        first_rank=placement.first_rank,
        stacks=attempt_dir / f"stacks-node-{placement.node_rank:05d}.txt",
    )
    watch.install()
    out_of_memory = out_of_memory_kills()
    try:
        codes = _launch(job, placement, watch, logs=logs, tee=options.tee)
    finally:
        watch.kill_all()
    if codes is not None:
        return _verdict_of_codes(codes)
    seen = NodeReport(
        first_rank=placement.first_rank,
        deaths=tuple(watch.deaths),
        out_of_memory=out_of_memory_kills() > out_of_memory,
        stop_timed_out=watch.stop_timed_out,
    )
    if placement.nnodes > 1:
        seen.write_quietly(attempt_dir, placement.node_rank)
    own = range(placement.first_rank, placement.first_rank + placement.nproc_per_node)
    return judge_failure(
        failures.read_reports(attempt_dir, ranks=own if placement.is_large else None),
        seen.deaths,
        first_rank=seen.first_rank,
        ranks=placement.nproc_per_node,
        out_of_memory=seen.out_of_memory,
        stop_timed_out=seen.stop_timed_out,
    )


def _check(placement: Placement, *, world_size: int) -> None:
    """Refuse a placement that does not fit the plan."""
    if placement.nnodes * placement.nproc_per_node != world_size:
        raise LaunchError(
            f"--nnodes {placement.nnodes} x --nproc-per-node {placement.nproc_per_node} are "
            f"{placement.nnodes * placement.nproc_per_node} processes, but the plan is for {world_size}"
        )
    if not 0 <= placement.node_rank < placement.nnodes:
        raise LaunchError(f"--node-rank {placement.node_rank} is not in 0 to {placement.nnodes - 1} (--nnodes)")
    if placement.nnodes > 1 and placement.rdzv_endpoint is None:
        raise LaunchError("--rdzv-endpoint is missing: with several hosts each needs HOST:PORT of host 0")


def _prepare(job: Job, placement: Placement, *, attempt_dir: Path, part: bool) -> Path:
    """Make this attempt's folders, without what an earlier try under its number left; return the log folder."""
    logs = job.run_dir / "logs"
    try:
        logs.mkdir(exist_ok=True)
        attempt_dir.mkdir(parents=True, exist_ok=True)
        # Its own only: other hosts may have written theirs already.
        for rank in range(placement.first_rank, placement.first_rank + placement.nproc_per_node):
            failures.error_path(attempt_dir, rank).unlink(missing_ok=True)
        (part_path(attempt_dir, placement.node_rank) if part else attempt_dir / "verdict.json").unlink(missing_ok=True)
    except OSError as error:
        raise LaunchError(f"cannot write into {job.run_dir}: {error.strerror}; check its permissions") from error
    return logs


def _preload(job: Job) -> None:
    """Import what ranks would import, so that they import nothing, and keep its pages shared."""
    from llama_scale.train import engine

    importlib.import_module(engine.module_of(job.spec.engine.kind))
    gc.collect()
    gc.freeze()  # the collector would otherwise write into, and so copy, every inherited page


def _launch(job: Job, placement: Placement, watch: RankWatch, *, logs: Path, tee: bool) -> dict[int, Any] | None:
    """Fork the ranks and wait for them; return their exit codes by rank, or None if one failed."""
    from torch.distributed import DistNetworkError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from llama_scale.train import store

    _quiet_torchelastic()
    store.register()
    timeout_s, departure = job.spec.train.timeout_s, store.Departure()
    for trial in range(5):
        endpoint = placement.rdzv_endpoint or f"127.0.0.1:{free_port()}"
        config = LaunchConfig(
            min_nodes=placement.nnodes,
            max_nodes=placement.nnodes,
            nproc_per_node=placement.nproc_per_node,
            run_id=f"{job.run_dir.name}-{job.attempt}",
            rdzv_backend=store.BACKEND,
            rdzv_endpoint=endpoint,
            rdzv_configs={"rank": placement.node_rank, "timeout": timeout_s, "departure": departure},
            max_restarts=0,
            monitor_interval=0.1,
            start_method="fork",
            local_addr=None if placement.rdzv_endpoint else "127.0.0.1",
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
            signals_to_handle="SIGQUIT",  # the stop signals are RankWatch's
        )
        served: StoreProcess | None = None
        try:
            if placement.node_rank == 0:
                served = store.StoreProcess(endpoint, timeout_s=timeout_s)
            codes: dict[int, Any] = elastic_launch(config, _rank_main)(job, watch, logs, tee)
            departure.leave(placement.node_rank, hosts=placement.nnodes)
            return codes
        except ChildFailedError:
            return None
        except DistNetworkError as error:
            # Somebody took the port between the check and the bind.
            if placement.rdzv_endpoint is not None or "EADDRINUSE" not in str(error) or trial == 4:
                raise LaunchError(f"cannot open the rendezvous at {endpoint}: {error}") from error
        finally:
            if served is not None:
                served.close()
    return None


def _rank_main(job: Job, watch: RankWatch, logs: Path, tee: bool) -> int:
    from llama_scale.train import worker

    rank = int(os.environ["RANK"])
    try:
        watch.enter_rank(int(os.environ["LOCAL_RANK"]))
        stop = worker.take_stop_signals(job, rank=rank)
        agents_stderr = os.dup(2)
        log = os.open(_log_of(rank, job, logs), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)
    except Exception as error:
        worker.fail(job.attempt_dir, error, rank=rank)
    return worker.run_rank(job, stop=stop, tee=agents_stderr if tee and rank == 0 else None)


def _log_of(rank: int, job: Job, logs: Path) -> Path:
    """Return the file that a rank prints into: its own, or in a large run that of its host."""
    if job.plan.topology.world_size <= RANK_LOGS:
        return logs / f"rank-{rank:05d}.log"
    return logs / f"node-{int(os.environ['GROUP_RANK']):05d}.log"


def _quiet_torchelastic() -> None:
    """Keep torchelastic from logging tracebacks of its own; the verdict says what happened."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    # Python 3.12 warns of any thread at a fork; torch may have native ones.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)


def _verdict_of_codes(codes: dict[int, Any]) -> Verdict:
    if any(code == PREEMPTED_EXIT for code in codes.values()):
        return Verdict(state="preempted", exit_code=PREEMPTED_EXIT, message="stopped on request; the state is saved")
    return Verdict(state="ok", exit_code=0, message="done")


def _announce(verdict: Verdict, path: Path, *, run_dir: Path) -> None:
    failure = verdict.first_failure
    if failure is not None and failure.traceback:
        sys.stderr.write(failure.traceback)
    sys.stderr.write(f"llama-scale agent: {verdict.state}: {verdict.message}\n")
    if not run_dir.is_dir():
        return
    try:
        verdict.write(path)
    except OSError as error:
        sys.stderr.write(f"cannot write {path}: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
