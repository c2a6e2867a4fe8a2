"""The process above the ``deepspeed`` command: start it, watch its ranks, stop them, and judge how they ended.

    python -m llama_scale.train.deepspeed_agent --run RUN_DIR --env-file BUNDLE/env --world-size 4 -- COMMAND...

The command's exit status says little: it is 0 when the process below it was killed, and a host whose ranks failed
does not stop the others. So each rank is watched where it runs (``launched``) and writes down its end; this process
reads that, ends the others, and writes ``attempts/NNN/verdict.json`` as the agent of local runs does. The command
itself gets no signals: its handlers run ``pkill -f`` on all hosts, which would hit other runs.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from llama_scale.errors import PREEMPTED_EXIT, LaunchError, LlamaScaleError
from llama_scale.spec.hostfile import HostfileError, parse_hostfile
from llama_scale.train import deepspeed_verdict, failures
from llama_scale.train.deepspeed_verdict import Watched
from llama_scale.train.ports import choose_port, job_ports
from llama_scale.train.rank_records import Control, RankJob, RankRecord, parse_environment, read_records
from llama_scale.train.watch import STOP_SIGNALS

_STOP = frozenset({*STOP_SIGNALS, signal.SIGHUP})
_WAITED = _STOP | {signal.SIGCHLD}
_POLL_S = 0.25
_RENEW_S = 2.0
_FAILURE_GRACE_S = 3.0
"""Time that the others have to write down their errors after one rank failed."""
_END_GRACE_S = 1.5
"""Time from the request to end until the command is killed with everything that it has started on this host."""
_LEAVE_GRACE_S = 5.0
"""Time that the command gets to leave by itself once all ranks have: it looks at them once a second."""
_FORWARDED = ("NCCL_", "GLOO_", "UCX_", "FI_")
"""Variables of the calling shell that other hosts get too, beside the bundle's: those of the network."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command to its end and return the exit status of the run."""
    options = _parser().parse_args(argv)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a request for stacks, which this launcher cannot pass on
    job = RankJob(
        run=str(options.run.absolute()),
        attempt=options.attempt,
        environment=str(options.run.absolute() / "attempts" / f"{options.attempt:03d}" / "environment"),
        lease_s=options.lease_s,
    )
    control = Control(job.attempt_dir)
    try:
        command, environment = _prepare(options, job, control)
        watched = _Watch(control, world_size=options.world_size, grace_s=options.stop_grace_s).run(command, environment)
        verdict = deepspeed_verdict.judge(watched, job.attempt_dir, world_size=options.world_size)
    except LlamaScaleError as error:
        verdict = deepspeed_verdict.refused(error)
    return verdict.conclude(job.attempt_dir, speaker="llama-scale agent")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llama_scale.train.deepspeed_agent", description=main.__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="RUN_DIR", help="run folder: spec.yaml, plan.json")
    parser.add_argument("--env-file", type=Path, required=True, help="the bundle's variables, as a shell reads them")
    parser.add_argument("--world-size", type=int, required=True, help="ranks of the run")
    parser.add_argument("--stop-grace-s", type=float, default=60.0, help="time to save and leave after a stop signal")
    parser.add_argument("--lease-s", type=float, default=20.0, help="ranks end when this process is gone for so long")
    parser.add_argument("--attempt", type=int, default=int(os.environ.get("LLAMA_SCALE_ATTEMPT", "0")), help="from 0")
    parser.add_argument("--hostfile", type=Path, help="hosts to reach by ssh, in order of ranks; default: this one")
    parser.add_argument("--ssh-port", type=int, help="port of sshd on the hosts")
    parser.add_argument("--ssh-timeout-s", type=float, default=20.0, help="time in which every host has to answer")
    parser.add_argument("--master-port", type=int, help="port of the rendezvous; default: by run and attempt")
    parser.add_argument("command", nargs="+", help="the deepspeed command, after --; port and script are added")
    return parser


def _prepare(options: argparse.Namespace, job: RankJob, control: Control) -> tuple[list[str], dict[str, str]]:
    """Check hosts, write what ranks read, and return the command with its environment.

    Raises:
        LaunchError: A host or this machine lacks something, or the run folder cannot be written.
    """
    try:
        (Path(job.run) / "logs").mkdir(exist_ok=True)
        control.begin(patience_s=1.25 * job.lease_s)
        bundled = parse_environment(options.env_file.read_text(encoding="utf-8"))
        hosts = parse_hostfile(options.hostfile.read_text(encoding="ascii")) if options.hostfile else ()
        values = _ranks_variables(bundled, os.environ)
        Path(job.environment).write_text(_assignments(values), encoding="utf-8")
    except (HostfileError, UnicodeDecodeError) as error:
        raise LaunchError(f"{options.hostfile}: {error}; render the bundle again") from error
    except BlockingIOError as error:
        raise LaunchError(
            f"ranks of an earlier start of {job.run} still run, though nobody renews their lease; end them with kill"
        ) from error
    except OSError as error:
        raise LaunchError(f"cannot prepare {job.run}: {error}; check its permissions and free space") from error
    seed = f"{job.run}#{job.attempt}"
    # Which ports of the first host are free is not known here.
    port = options.master_port or (job_ports(seed)[0] if hosts else choose_port(seed, address="127.0.0.1"))
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if hosts:
        from llama_scale.train.hosts import check_hosts, ssh_options  # lazy: threads, and several hosts only

        names = [host.name for host in hosts]
        check_hosts(names, job=job, master_port=port, ssh_port=options.ssh_port, timeout_s=options.ssh_timeout_s)
        simple = {name: value for name, value in values.items() if _is_plain(value)}
        file = control.attempt_dir / "deepspeed_env"
        file.write_text("".join(f"{name}={value}\n" for name, value in simple.items()), encoding="ascii")
        # Absolute, so that neither ~/.deepspeed_env nor one in the current folder is read.
        environment["DS_ENV_FILE"] = str(file)
        extra = shlex.join(ssh_options(timeout_s=options.ssh_timeout_s))
        environment["PDSH_SSH_ARGS_APPEND"] = f"{environment.get('PDSH_SSH_ARGS_APPEND', '')} {extra}".strip()
    command = [*options.command, "--master_port", str(port), "--module", "llama_scale.train.launched", job.encode()]
    return command, environment


def _ranks_variables(bundled: dict[str, str], shell: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """Return what every rank gets on every host, sorted: the shell's variables of the network, then the bundle's."""
    marks = ("OMP_NUM_THREADS", "LLAMA_SCALE_RUN", "LLAMA_SCALE_ATTEMPT")
    values = {name: value for name, value in shell.items() if name.startswith(_FORWARDED) or name in marks}
    return dict(sorted({**values, **bundled}.items()))


def _assignments(values: dict[str, str]) -> str:
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _is_plain(value: str) -> bool:
    """Tell whether DeepSpeed passes a value on unharmed: it wraps others in double quotes, in which a shell works."""
    return value.isascii() and all(c.isalnum() or c in "_@%+=:,./-" for c in value) and "%" not in value


class _Watch:
    """Watch the command and its ranks from start to end."""

    def __init__(self, control: Control, *, world_size: int, grace_s: float) -> None:
        self._control = control
        self._world_size = world_size
        self._grace_s = grace_s
        self._seen = Watched()
        self._vanished: dict[int, RankRecord] = {}
        self._host = socket.gethostname()
        self._deadline: float | None = None
        self._kill_at: float | None = None

    def run(self, command: list[str], environment: dict[str, str]) -> Watched:
        """Start the command and wait until it and its ranks have ended.

        Raises:
            LaunchError: It could not be started.
        """
        seen = self._seen
        try:
            process = subprocess.Popen(
                command,
                cwd="/",  # DeepSpeed pastes the current folder into the command line of other hosts
                stdin=subprocess.DEVNULL,
                env=environment,
                process_group=0,  # to kill it with all below it on this host, and nothing else
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ()),  # noqa: PLW1509 - one thread
            )
        except OSError as error:
            raise LaunchError(f"cannot start {command[0]}: {error.strerror}") from error
        renewed = time.monotonic()
        while seen.status is None:
            info = signal.sigtimedwait(_WAITED, _POLL_S)
            seen.status = process.poll()
            now = time.monotonic()
            if now > renewed + _RENEW_S:
                renewed = now
                self._renew()
            seen.records = self._read()
            if info is not None and info.si_signo in _STOP and seen.stopped is None:
                self._ask_to_stop(signal.Signals(info.si_signo).name, now=now)
            self._decide(now)
            if self._kill_at is not None and now > self._kill_at and seen.status is None:
                seen.killed = True
                _kill_group(process.pid)
        seen.command_first = not seen.killed and not self._failures()
        self._end_ranks(process.pid)
        return seen

    def _failures(self) -> bool:
        """Tell whether a rank has failed so far, or says that something did."""
        codes = {record.exit_code for record in self._seen.records.values()}
        return bool(codes - {None, 0, PREEMPTED_EXIT} or failures.read_reports(self._control.attempt_dir))

    def _renew(self) -> None:
        try:
            self._control.lease.touch()
        except OSError as error:
            sys.stderr.write(f"cannot renew {self._control.lease}: {error}\n")

    def _ask_to_stop(self, name: str, *, now: float) -> None:
        seen = self._seen
        seen.stopped = name
        self._request(self._control.stop)
        if len(seen.records) < self._world_size:  # they wait for each other, and none has done a step
            seen.stopped_early = True
            self._end(now)
        elif self._deadline is None:
            self._deadline = now + self._grace_s

    def _decide(self, now: float) -> None:
        """End the ranks when one failed, or when a stop takes too long; kill the command when it does not follow."""
        seen = self._seen
        ended = [record for record in seen.records.values() if record.exit_code is not None]
        failed = any(record.exit_code not in (0, PREEMPTED_EXIT) for record in ended)
        if failed and self._kill_at is None:
            limit = now + _FAILURE_GRACE_S
            self._deadline = limit if self._deadline is None else min(self._deadline, limit)
        if self._deadline is not None and now > self._deadline and self._kill_at is None:
            seen.stop_timed_out = seen.stopped is not None and not failed
            self._end(now)
        elif len(ended) == self._world_size and self._kill_at is None:
            self._kill_at = now + _LEAVE_GRACE_S

    def _end(self, now: float) -> None:
        self._request(self._control.end)
        self._kill_at = now + _END_GRACE_S

    def _request(self, file: Path) -> None:
        try:
            file.touch()
        except OSError as error:
            sys.stderr.write(f"cannot write {file}: {error}\n")

    def _read(self) -> dict[int, RankRecord]:
        """Return the records; a rank of this host whose watcher was killed has ended too."""
        records = read_records(self._control.attempt_dir)
        for rank, record in records.items():
            if record.exit_code is None and record.host == self._host and not _is_alive(record.pid):
                again = read_records(self._control.attempt_dir)[rank]  # it may have written its end and left meanwhile
                if again.exit_code is None:
                    by_agent = self._seen.killed
                    self._vanished.setdefault(rank, again.end(-signal.SIGKILL, by_agent=by_agent))
        return {rank: self._vanished.get(rank, record) for rank, record in records.items()}

    def _end_ranks(self, group: int) -> None:
        """After the command: end ranks that still run, here and elsewhere, and see how they ended."""
        seen = self._seen
        limit = time.monotonic() + 2 * _END_GRACE_S
        while time.monotonic() < limit:
            seen.records = self._read()
            if all(record.exit_code is not None for record in seen.records.values()):
                break
            self._request(self._control.end)
            time.sleep(_POLL_S)
        else:
            _kill_group(group)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _is_alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in {"Z", "X"}


if __name__ == "__main__":
    sys.exit(main())
