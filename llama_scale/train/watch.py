"""Watch forked ranks from the agent: see each death at once, end the others, pass stop signals on.

Everything happens in signal handlers of the agent's main thread (SIGCHLD, SIGALRM and the stop signals): a thread
would have to exist beside the forks, and torchelastic itself asks only every tenth of a second, for one rank at a time.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
from dataclasses import dataclass
from types import FrameType

from llama_scale.train.failures import now_utc

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that ask a run to save and leave; SIGUSR1 is what Slurm sends ahead of a time limit."""

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
    """

    def __init__(self, ranks: int, *, stop_grace_s: float, failure_grace_s: float = 3.0) -> None:
        self._ranks = ranks
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

    def enter_rank(self, local_rank: int) -> None:
        """Make this process a rank: it gets default signals back and dies when the agent does, even by SIGKILL."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
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


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
