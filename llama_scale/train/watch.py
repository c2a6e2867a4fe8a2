"""Watch forked ranks from the agent: see each death at once, end the others, pass stop signals on.

Everything happens in signal handlers of the agent's main thread (SIGCHLD, SIGALRM and the stop signals): a thread
would have to exist beside the forks, and torchelastic itself asks only every tenth of a second, for one rank at a time.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import signal
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from llama_scale.train.failures import now_utc

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that ask a run to save and leave; SIGUSR1 is what Slurm sends ahead of a time limit."""
STACKS_SIGNAL = signal.SIGUSR2
"""Asks an agent for the stacks of all its ranks."""

_PR_SET_PDEATHSIG = 1
_AGENT_SIGNALS = (*STOP_SIGNALS, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """Describe a rank that ended other than well.

    Args:
        local_rank: Its number on this host.
        time_utc: When the agent saw it.
        exit_code: Exit status, or minus the signal that ended it.
        by_agent: The agent itself had sent SIGKILL.
    """

    local_rank: int
    time_utc: str
    exit_code: int
    by_agent: bool


class RankWatch:
    """Keep the process ids of this host's ranks in memory shared with them, and watch them.

    Args:
        ranks: Ranks of this host.
        stop_grace_s: Time that ranks have to save and leave after a stop signal.
        failure_grace_s: Time that the others have to write down their errors after one rank failed.
        first_rank: Global rank of local rank 0.
        stacks: File that SIGUSR2 to the agent writes the stacks of all ranks into.
    """

    def __init__(
        self,
        ranks: int,
        *,
        stop_grace_s: float,
        failure_grace_s: float = 3.0,
        first_rank: int = 0,
        stacks: Path | None = None,
    ) -> None:
        self._ranks = ranks
        self._first_rank = first_rank
        self._stacks = stacks
        self._dumps = os.memfd_create("stacks") if stacks else -1
        self._pids = mmap.mmap(-1, 8 * ranks)  # shared with the forked ranks
        self._agent_pid = os.getpid()
        self._stop_grace_s = stop_grace_s
        self._failure_grace_s = failure_grace_s
        self._ended: set[int] = set()
        self._killed: set[int] = set()
        self.deaths: list[Death] = []
        self.stop_signal: str | None = None
        self.stop_timed_out = False

    def install(self) -> None:
        """Take over the agent's signals; before the ranks are forked."""
        for number in _AGENT_SIGNALS:
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, self._on_child)
        signal.signal(signal.SIGALRM, self._on_alarm)
        if self._stacks:
            signal.signal(STACKS_SIGNAL, self._on_stacks)

    def enter_rank(self, local_rank: int) -> None:
        """Make this process a rank: it gets default signals back and dies when the agent does, even by SIGKILL."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if self._stacks:
            # In C: it works while Python waits in a collective.
            faulthandler.register(STACKS_SIGNAL, file=self._dumps, all_threads=True)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closing terminal reaches the agent too, which stops the run
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._agent_pid:  # the agent died before the line above
            os._exit(1)
        struct.pack_into("q", self._pids, 8 * local_rank, os.getpid())

    def kill_all(self) -> None:
        """Send SIGKILL to every rank that is still there."""
        for local_rank, pid in self._alive():
            self._killed.add(local_rank)
            _send(pid, signal.SIGKILL)

    def _alive(self) -> list[tuple[int, int]]:
        pids = struct.unpack(f"{self._ranks}q", self._pids[:])
        return [(rank, pid) for rank, pid in enumerate(pids) if pid and rank not in self._ended]

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        first = self.stop_signal is None
        self.stop_signal = self.stop_signal or signal.Signals(number).name
        for _, pid in self._alive():
            _send(pid, signal.SIGTERM)
        if first and not self.deaths:
            signal.setitimer(signal.ITIMER_REAL, self._stop_grace_s)

    def _on_child(self, number: int, frame: FrameType | None) -> None:
        for local_rank, pid in self._alive():
            try:
                # WNOWAIT leaves the status for torchelastic, which waits for its processes too.
                found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:  # torchelastic was faster and knows the status itself
                self._ended.add(local_rank)
                continue
            if found is None:
                continue
            self._ended.add(local_rank)
            exit_code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            if exit_code != 0:
                self._note(local_rank, exit_code)

    def _note(self, local_rank: int, exit_code: int) -> None:
        if not self.deaths:
            signal.setitimer(signal.ITIMER_REAL, self._failure_grace_s)
        by_agent = exit_code == -signal.SIGKILL and local_rank in self._killed
        self.deaths.append(Death(local_rank=local_rank, time_utc=now_utc(), exit_code=exit_code, by_agent=by_agent))

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        self.stop_timed_out = not self.deaths
        self.kill_all()

    def _on_stacks(self, number: int, frame: FrameType | None) -> None:
        """Let each rank in turn write its stack behind its name, then make the file of it."""
        assert self._stacks is not None
        os.ftruncate(self._dumps, 0)
        os.lseek(self._dumps, 0, os.SEEK_SET)
        for local_rank, pid in self._alive():
            os.write(self._dumps, f"== rank {self._first_rank + local_rank} (process {pid})\n".encode())
            _send(pid, STACKS_SIGNAL)
            _wait_for_growth(self._dumps)
        size = os.lseek(self._dumps, 0, os.SEEK_END)
        temporary = self._stacks.with_name(f".{self._stacks.name}")
        try:
            temporary.write_bytes(os.pread(self._dumps, size, 0))
            temporary.replace(self._stacks)
        except OSError:  # the disk is full; the run goes on
            return


def _wait_for_growth(descriptor: int, *, patience_s: float = 0.5) -> None:
    """Wait until a dump has begun and has not grown for a moment; a stopped process writes none."""
    begin = size = os.fstat(descriptor).st_size
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        time.sleep(0.02)
        now = os.fstat(descriptor).st_size
        if now == size > begin:
            return
        size = now


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
