"""The process above ``srun`` or ``mpirun``, which start one agent a host: pass stops on, and judge how the hosts ended.

    python -m llama_scale.train.command --run RUN_DIR --nodes 2 --devices 8 -- srun ... bash node.sh RUN_DIR HOST:PORT

The command's exit status says little (srun's is 0 also when no task could be started), so what counts is what each
host's agent writes down; this process merges that into ``attempts/NNN/verdict.json``. No torch.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_scale.errors import PREEMPTED_EXIT, LaunchError
from llama_scale.train.part_verdicts import merge, read_parts, stopped_early
from llama_scale.train.verdict import FirstFailure, Verdict
from llama_scale.train.watch import STOP_SIGNALS

_STOP = frozenset({*STOP_SIGNALS, signal.SIGHUP})
_WAITED = _STOP | {signal.SIGCHLD, signal.SIGUSR2}
_POLL_S = 0.25
_FAILURE_GRACE_S = 15.0
"""Time from a host's failure to the end of the command, which should end the others by itself."""
_MARGIN_S = 5.0
"""Time over the grace in which agents kill ranks that hang and write their verdicts."""
_PR_SET_PDEATHSIG = 1
_KILL_S = 10.0
"""Time from the last signal to SIGKILL for the command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    status: int
    stopped: str | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command to its end and return the exit status of the run."""
    options = _parser().parse_args(argv)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)
    attempt_dir = options.run / "attempts" / f"{options.attempt:03d}"
    try:
        _prepare(options.run, attempt_dir)
        ended = _watch(options, attempt_dir)
        verdict = _judge(options, ended, attempt_dir)
    except LaunchError as error:
        failure = FirstFailure(rank=None, kind="infrastructure", error=str(error))
        verdict = Verdict(state="failed", exit_code=error.exit_code, first_failure=failure, message=str(error))
    return verdict.conclude(attempt_dir, speaker="llama-scale")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llama_scale.train.command", description=main.__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="RUN_DIR", help="run folder: spec.yaml, plan.json")
    parser.add_argument("--nodes", type=int, required=True, help="hosts of the run")
    parser.add_argument("--devices", type=int, required=True, help="ranks of each host")
    parser.add_argument("--stop-grace-s", type=float, required=True, help="time to save and leave after a stop signal")
    parser.add_argument("--stop-signal", choices=("TERM", "USR1"), default="TERM", help="what the command passes on")
    parser.add_argument("--attempt", type=int, default=int(os.environ.get("LLAMA_SCALE_ATTEMPT", "0")), help="from 0")
    parser.add_argument("command", nargs="+", help="the command, after --")
    return parser


def _prepare(run: Path, attempt_dir: Path) -> None:
    try:
        attempt_dir.mkdir(parents=True, exist_ok=True)
        (run / "logs").mkdir(exist_ok=True)
        for pattern in ("error-rank-*.json", "verdict*.json", "end"):
            for old in attempt_dir.glob(pattern):
                old.unlink(missing_ok=True)
    except OSError as error:
        raise LaunchError(f"cannot write into {run}: {error.strerror}; check its permissions and space") from error


def _enter_command() -> None:
    """Unblock signals, and die when the process above does: at SIGTERM srun and mpirun take their agents along."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _watch(options: argparse.Namespace, attempt_dir: Path) -> _Ended:
    try:
        process = subprocess.Popen(
            options.command,
            stdin=subprocess.DEVNULL,
            process_group=0,  # a signal to this process's group must not reach it twice
            preexec_fn=_enter_command,  # noqa: PLW1509 - one thread
        )
    except OSError as error:
        raise LaunchError(f"cannot start {options.command[0]}: {error.strerror}") from error
    stop_signal = signal.Signals[f"SIG{options.stop_signal}"]
    stopped: str | None = None
    deadline: float | None = None
    terminated = False
    while process.poll() is None:
        info = signal.sigtimedwait(_WAITED, _POLL_S)
        now = time.monotonic()
        if info is not None and info.si_signo == signal.SIGUSR2:
            process.send_signal(signal.SIGUSR2)
        elif info is not None and info.si_signo in _STOP and stopped is None:
            stopped = signal.Signals(info.si_signo).name
            process.send_signal(stop_signal)
            deadline = now + options.stop_grace_s + _MARGIN_S
        if not terminated and any(v.state == "failed" for v in read_parts(attempt_dir).values()):
            deadline = min(deadline or now + _FAILURE_GRACE_S, now + _FAILURE_GRACE_S)
        if not terminated and (attempt_dir / "end").exists():  # the supervisor gives a hung attempt up
            deadline = now
        if deadline is not None and now >= deadline:
            if terminated:
                process.kill()
                deadline = now + _KILL_S
            else:
                process.terminate()
                terminated, deadline = True, now + _KILL_S
    return _Ended(status=process.returncode, stopped=stopped)


def _judge(options: argparse.Namespace, ended: _Ended, attempt_dir: Path) -> Verdict:
    verdicts = read_parts(attempt_dir)
    if ended.stopped is not None and not verdicts:
        return stopped_early(ended.stopped)
    name = Path(options.command[0]).name
    verdict = merge(verdicts, nodes=options.nodes, devices=options.devices, command=name, status=ended.status)
    # An agent that was told to stop while it imported had nothing to save; the others then lose their peers.
    early = [v for v in verdicts.values() if v.exit_code == PREEMPTED_EXIT]
    if ended.stopped is not None and verdict.state == "failed" and early and _only_consequences(verdicts):
        return early[0]
    return verdict


def _only_consequences(verdicts: dict[int, Verdict]) -> bool:
    kinds = {v.first_failure.kind for v in verdicts.values() if v.first_failure is not None}
    return kinds <= {"collateral"}


if __name__ == "__main__":
    sys.exit(main())
