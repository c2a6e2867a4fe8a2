"""Start an attempt on all hosts, watch it to its end, and see that nothing of it is left. No torch."""

from __future__ import annotations

import argparse
import resource
import selectors
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import FrameType
from typing import Literal

from llama_scale.errors import PREEMPTED_EXIT, LaunchError
from llama_scale.train.ssh_channel import Channel, ssh_command
from llama_scale.train.ssh_protocol import BEAT_S, Lease, NodeJob, NodeRecord, Order
from llama_scale.train.ssh_verdict import NodeEnd, judge_nodes
from llama_scale.train.verdict import Verdict
from llama_scale.train.watch import STOP_SIGNALS

_POLL_S = 0.25
_FAILURE_GRACE_S = 3.0
"""Time that the others have to write down their errors after one host failed."""
_END_GRACE_S = 5.0
"""Time from the order to end until a host that still has not ended is given up."""
_AT_ONCE = 64
"""Connections that are being opened at the same time."""
_SHOWN = 8


class Requests:
    """Remember what signals ask for."""

    def __init__(self) -> None:
        self.stop: str | None = None
        self.stacks = False

    def install(self) -> None:
        """Take over this process's signals."""
        for number in (*STOP_SIGNALS, signal.SIGHUP):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGUSR2, self._on_stacks)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop = self.stop or signal.Signals(number).name

    def _on_stacks(self, number: int, frame: FrameType | None) -> None:
        self.stacks = True


class Head:
    """Start an attempt on all hosts and watch it to its end.

    Args:
        hosts: Names, in order of ranks.
        job: What host 0's guard is told.
        options: The command line.
        variables: Environment of the agents.
        requests: What signals ask for.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        job: NodeJob,
        options: argparse.Namespace,
        variables: dict[str, str],
        requests: Requests,
    ) -> None:
        self._hosts, self._job, self._options = hosts, job, options
        self._variables, self._requests = variables, requests
        self._channels: dict[int, Channel] = {}
        self._ends: dict[int, NodeEnd] = {}
        self._lost: dict[int, str] = {}
        self._lease = Lease(job.attempt_dir / "lease")
        self._selector = selectors.DefaultSelector()
        self._beat = 0.0
        self._stop_deadline: float | None = None
        self._fail_deadline: float | None = None
        self._end_deadline: float | None = None
        self._stop_timed_out = False

    def run(self) -> Verdict:
        """Return how the attempt ended; no process of it is then left on a host that can be reached.

        Raises:
            LaunchError: A host cannot run its ranks; all such hosts are named.
        """
        _allow_files(4 * len(self._hosts) + 64)
        try:
            if not self._gather():
                message = f"stopped by {self._requests.stop} before training began; nothing had to be saved"
                return Verdict(state="preempted", exit_code=PREEMPTED_EXIT, message=message)
            self._start()
            while len(self._ends) < len(self._hosts):
                self._listen()
                self._watch(time.monotonic())
        finally:
            for channel in self._channels.values():
                channel.send(Order(do="end"))
                channel.close()
        return judge_nodes(
            self._job.attempt_dir,
            hosts=self._hosts,
            nproc=self._job.nproc,
            ends=self._ends,
            stopped=self._requests.stop,
            stop_timed_out=self._stop_timed_out,
        )

    def _gather(self) -> bool:
        """Open all channels and hear every host's hello; return False if a stop came first.

        Raises:
            LaunchError: A host does not answer, or says what it lacks.
        """
        faults: dict[int, str] = {}
        waiting = list(range(len(self._hosts)))
        while waiting or self._unheard(faults):
            while waiting and len(self._unheard(faults)) < _AT_ONCE:
                self._open(waiting.pop(0))
            self._listen()
            if self._requests.stop or (self._job.attempt_dir / "end").exists():
                return False
            now = time.monotonic()
            for node in self._unheard(faults):
                if fault := self._fault(self._channels[node], now):
                    faults[node] = fault
        for node, channel in self._channels.items():
            if channel.hello and channel.hello["faults"]:
                faults[node] = f"{channel.host}: {'; '.join(channel.hello['faults'])}"
        if faults:
            shown = [faults[node] for node in sorted(faults)]
            more = [f"and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
            raise LaunchError(
                "\n  ".join([f"{len(shown)} of {len(self._hosts)} hosts cannot run:", *shown[:_SHOWN], *more])
            )
        return True

    def _unheard(self, faults: Mapping[int, str]) -> list[int]:
        return [node for node, channel in self._channels.items() if channel.hello is None and node not in faults]

    def _fault(self, channel: Channel, now: float) -> str | None:
        """Say what is wrong with a channel whose host has said nothing yet; None if it may still speak."""
        if channel.poll() is not None:
            said = channel.said or f"status {channel.status}"
            if channel.unreachable:
                return f"{channel.host}: ssh failed: {said}; `ssh {channel.host} true` must work without a password"
            return f"{channel.host}: {said}"
        if now - channel.started > self._options.ssh_timeout_s:
            return (
                f"{channel.host}: no answer over ssh within {self._options.ssh_timeout_s:g} s (launcher.ssh_timeout_s)"
            )
        return None

    def _open(self, node: int) -> None:
        word = replace(self._job, node_rank=node).encode()
        command = ssh_command(
            self._hosts[node],
            [sys.executable, "-P", "-m", "llama_scale.train.ssh_guard", word],
            timeout_s=self._options.ssh_timeout_s,
            lease_s=self._job.lease_s,
            port=self._options.ssh_port,
        )
        channel = self._channels[node] = Channel(self._hosts[node], command)
        for descriptor in (channel.output, channel.errors):
            self._selector.register(descriptor, selectors.EVENT_READ, channel)

    def _start(self) -> None:
        first = self._channels[0].hello
        assert first is not None
        endpoint = f"{self._hosts[0]}:{first['port']}"
        for node, channel in self._channels.items():
            toward = self._hosts[0 if node else min(1, len(self._hosts) - 1)]
            channel.send(Order(do="start", endpoint=endpoint, toward=toward, variables=self._variables))

    def _listen(self) -> None:
        for key, _ in self._selector.select(_POLL_S):
            channel: Channel = key.data
            if not channel.read(key.fd):
                self._selector.unregister(key.fd)
        now = time.monotonic()
        if now >= self._beat:
            self._beat = now + BEAT_S
            for node, channel in self._channels.items():
                if node not in self._ends:
                    channel.send(Order(do="alive"))
            try:
                self._lease.renew()
            except OSError as error:
                sys.stderr.write(f"cannot renew {self._lease.path}: {error}\n")

    def _watch(self, now: float) -> None:
        """See which hosts have ended, pass requests on, and end all when one failed."""
        for node, channel in self._channels.items():
            if node not in self._ends and (end := self._ended(node, channel)):
                self._ends[node] = end
        if self._requests.stacks:
            self._requests.stacks = False
            self._tell("stacks")
        if self._requests.stop and self._stop_deadline is None:
            self._stop_deadline = now + self._job.grace_s + 2 * BEAT_S
            self._tell("stop")
        self._note_silence(now)
        failed = any(end.failed for end in self._ends.values()) or bool(self._lost)
        if failed and self._fail_deadline is None:
            self._fail_deadline = now + _FAILURE_GRACE_S
        if self._end_deadline is None:
            deadlines = [at for at in (self._stop_deadline, self._fail_deadline) if at is not None]
            if (deadlines and now > min(deadlines)) or (self._job.attempt_dir / "end").exists():
                self._stop_timed_out = self._requests.stop is not None and not failed
                self._end_deadline = now + _END_GRACE_S
                self._tell("end")
        elif now > self._end_deadline:
            for node, channel in self._channels.items():
                # Its own lease is over a little later than it is here.
                silent = now - channel.heard > self._job.lease_s + 2 * BEAT_S
                if node not in self._ends and (silent or now > self._end_deadline + self._job.lease_s):
                    self._give_up(node)

    def _ended(self, node: int, channel: Channel) -> NodeEnd | None:
        if channel.end is not None:
            return NodeEnd(
                exit_code=channel.end["exit_code"], reason=channel.end["reason"], lost=self._lost.get(node, "")
            )
        if channel.poll() is not None and channel.output not in self._selector.get_map():
            said = f": {channel.said}" if channel.said else ""
            return NodeEnd(lost=f"its connection ended with status {channel.status}{said}")
        return None

    def _note_silence(self, now: float) -> None:
        """Remember hosts whose lease is over; they are waited for until they have seen it too."""
        for node, channel in self._channels.items():
            silent_s = now - channel.heard
            if node not in self._ends and node not in self._lost and silent_s > self._job.lease_s:
                self._lost[node] = (
                    f"no sign of life for {silent_s:.0f} s: it is down or hangs, or the network to it is broken"
                )

    def _give_up(self, node: int) -> None:
        self._ends[node] = NodeEnd(lost=self._lost.get(node, "its processes do not end when they are killed"))
        # On its behalf: its processes end at the latest when its lease does, and nobody need wait for them.
        record = NodeRecord(node_rank=node, host=self._hosts[node], pid=0).end(-signal.SIGKILL, reason="lease")
        try:
            record.write(self._job.attempt_dir)
        except OSError as error:
            sys.stderr.write(f"cannot write the record of {self._hosts[node]}: {error}\n")

    def _tell(self, what: Literal["stop", "end", "stacks"]) -> None:
        for node, channel in self._channels.items():
            if node not in self._ends:
                channel.send(Order(do=what))


def _allow_files(wanted: int) -> None:
    """Raise the limit on open files: three pipes a host."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
