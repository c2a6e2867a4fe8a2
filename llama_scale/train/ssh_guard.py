"""The guard of one host of a run: starts the host's agent, and ends it when the head of the run has gone. No torch.

    python -m llama_scale.train.ssh_guard JOB

It is what the ssh launcher starts on every host. Its standard input and output are the channel to the head
(``ssh_protocol``). The agent and its ranks have a session of their own, which the guard's death ends too.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from llama_scale.errors import LaunchError
from llama_scale.libraries import missing_libraries
from llama_scale.resources import package_digest
from llama_scale.train.ports import choose_port
from llama_scale.train.rank_records import rank_environment
from llama_scale.train.ssh_protocol import BEAT_S, SAVE_PART, NodeJob, NodeRecord, Order, Reason, say

_POLL_S = 0.25
_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Guard this host's part of the run; return the agent's exit status, 128 + N for a signal."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        (word,) = arguments
        job = NodeJob.decode(word)
    except (ValueError, TypeError):
        sys.stderr.write(
            "usage: python -m llama_scale.train.ssh_guard JOB; the head of a run on several hosts calls it\n"
        )
        return 2
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    code = _Guard(job).run()
    return code if code >= 0 else 128 - code


class _Guard:
    def __init__(self, job: NodeJob) -> None:
        self._job = job
        self._record = NodeRecord.begin(job.node_rank)
        self._agent: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._heard = time.monotonic()
        self._beat = 0.0
        self._closed = False
        self._stop_asked = False
        self._kill_at: float | None = None
        self._reason: Reason = ""

    def run(self) -> int:
        """Say hello, do what the head says, and return how the agent ended (75 if it was never started)."""
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        self._send_hello()
        selector = selectors.DefaultSelector()
        selector.register(0, selectors.EVENT_READ)
        while self._agent is None or self._agent.poll() is None:
            if self._closed:
                time.sleep(_POLL_S)
            elif selector.select(_POLL_S):
                self._read()
            now = time.monotonic()
            if now >= self._beat:
                self._beat = now + BEAT_S
                self._write(say("alive"))
            self._watch_lease(now)
            if self._kill_at is not None and now >= self._kill_at:
                if self._agent is None:
                    return 75
                self._kill()
        self._kill()  # what an agent that was killed left behind
        code = self._agent.returncode
        self._write_record(self._record.end(code, reason=self._reason))
        self._write(say("end", exit_code=code, reason=self._reason))
        return code

    def _send_hello(self) -> None:
        faults, port = list(_faults(self._job)), None
        if self._job.node_rank == 0:
            try:
                port = choose_port(f"{self._job.run}#{self._job.attempt}", wanted=self._job.port)
            except LaunchError as error:
                faults.append(str(error))
        self._write(say("hello", host=self._record.host, pid=self._record.pid, faults=faults, port=port))

    def _read(self) -> None:
        try:
            data = os.read(0, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._closed = True
            return
        self._heard = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            order = Order.parse(line)
            if order is not None:
                self._obey(order)

    def _obey(self, order: Order) -> None:
        match order.do:
            case "start":
                if self._agent is None:
                    self._start(order)
            case "stop":
                self._ask_to_stop("stop")
            case "end":
                self._reason = self._reason or "end"
                self._kill_at = 0.0
            case "stacks":
                if self._agent is not None:
                    self._agent.send_signal(signal.SIGUSR2)

    def _start(self, order: Order) -> None:
        job = self._job
        variables = agent_environment(os.environ, order.variables, nproc=job.nproc)
        if interface := interface_toward(order.toward):
            variables.setdefault("GLOO_SOCKET_IFNAME", interface)
        command = [sys.executable, "-P", "-m", "llama_scale.train.agent", "--run", job.run]
        command += ["--nnodes", str(job.nnodes), "--node-rank", str(job.node_rank), "--nproc-per-node", str(job.nproc)]
        command += ["--attempt", str(job.attempt), "--stop-grace-s", f"{job.grace_s:g}"]
        if job.nnodes > 1:
            command += ["--rdzv-endpoint", order.endpoint]
        own_pid = os.getpid()

        def die_with_guard() -> None:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != own_pid:  # it died before the line above
                os._exit(1)

        self._write_record(self._record)
        with (Path(job.run) / "logs" / f"node-{job.node_rank:05d}.log").open("ab") as log:
            self._agent = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables,
                start_new_session=True,
                preexec_fn=die_with_guard,  # noqa: PLW1509 - this process has one thread
            )

    def _watch_lease(self, now: float) -> None:
        """Let the ranks save when the head seems to have gone, and kill them when its lease is over."""
        silent_s, lease_s = now - self._heard, self._job.lease_s
        if self._closed or silent_s > SAVE_PART * lease_s:
            self._ask_to_stop("lease")
            if silent_s > lease_s:
                self._kill_at = now

    def _ask_to_stop(self, reason: Reason) -> None:
        if self._stop_asked:
            return
        self._stop_asked = True
        self._reason = self._reason or reason
        if self._agent is None:
            self._kill_at = 0.0
        else:
            self._agent.send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        """End the agent's whole session; nothing of it may outlive the guard."""
        assert self._agent is not None
        for pid in _session(self._agent.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._agent.wait()

    def _write(self, line: bytes) -> None:
        try:
            os.write(1, line)
        except OSError:  # the head has gone, or does not read: its lease runs out
            return

    def _write_record(self, record: NodeRecord) -> None:
        try:
            record.write(self._job.attempt_dir)
        except OSError as error:  # a full disk must not end ranks that can still save themselves
            sys.stderr.write(f"cannot write the record of host {record.node_rank}: {error}\n")


def agent_environment(own: Mapping[str, str], given: Mapping[str, str], *, nproc: int) -> dict[str, str]:
    """Return the environment of the agent: this host's own, then what the run gives; threads share the cores."""
    values = rank_environment({**own, "LOCAL_WORLD_SIZE": str(nproc)}, given, cores=len(os.sched_getaffinity(0)))
    del values["LOCAL_WORLD_SIZE"]
    return values


def interface_toward(host: str) -> str | None:
    """Return the name of the network interface through which packets to a host leave; None if that cannot be told."""
    import psutil

    try:
        address = socket.getaddrinfo(host, 1, socket.AF_INET, socket.SOCK_DGRAM)[0][4]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing: the kernel chooses the way
            own = probe.getsockname()[0]
    except (OSError, IndexError):
        return None
    names = psutil.net_if_addrs().items()
    return next((name for name, entries in names if any(entry.address == own for entry in entries)), None)


def _faults(job: NodeJob) -> Iterator[str]:
    """Yield what keeps this host from running its ranks."""
    version = package_digest()
    if version != job.version:
        yield f"llama-scale {version} is installed there, and {job.version} on the head machine; install the same"
    missing = missing_libraries("torch", "megatron")
    if missing:
        yield f"{' and '.join(missing)} not installed for {sys.executable}; install llama-scale[train] there"
    if not (job.attempt_dir / "lease").is_file():
        yield f"the run folder {job.run} is not seen there; use a folder that all hosts share (--runs-dir)"
        return
    probe = job.attempt_dir / f".node-{job.node_rank:05d}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        yield f"the run folder {job.run} cannot be written there: {error.strerror}; mend its mount or permissions"


def _session(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
