"""The store of a run's rendezvous, in a process of its own, and the rendezvous that uses it.

torchelastic serves the store from a thread of the first host's agent. That agent then forks its ranks, and the first of
them, and other hosts' agents, connect meanwhile: for each the thread looks up a name, under a lock of libc's resolver.
A rank that is forked in that moment has the lock taken for good and hangs at its own first look-up (seen in two of
about 240 starts on two cores). So the agent has no thread: the store is served elsewhere.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from typing import Any, NoReturn

from torch.distributed import DistNetworkError, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from llama_scale.train.watch import STACKS_SIGNAL, STOP_SIGNALS

BACKEND = "llama-scale"
"""Name of the rendezvous in a ``LaunchConfig``."""

_READY = b"ready"
_LEFT = "llama-scale/left"
_LEAVE_S = 10.0
_POLL_S = 0.02


class StoreProcess:
    """Serves a store until ``close``, or until this process and all that it forks have gone.

    Args:
        endpoint: ``host:port``.
        timeout_s: Limit of the server's own connection to itself.

    Raises:
        DistNetworkError: It cannot listen there.
    """

    def __init__(self, endpoint: str, *, timeout_s: float) -> None:
        self._answers, answer = os.pipe()
        life, self._life = os.pipe()
        middle = os.fork()
        if middle == 0:
            if os.fork():  # an agent's children are its ranks, and nothing else
                os._exit(0)
            os.close(self._answers)
            os.close(self._life)
            _serve(endpoint, answer=answer, life=life, timeout_s=timeout_s)
        os.close(answer)
        os.close(life)
        os.waitpid(middle, 0)
        text = os.read(self._answers, 4096)
        if not text.startswith(_READY):
            self._close()
            raise DistNetworkError(text.decode(errors="replace") or "the process that serves the store was killed")
        self._pid = int(text.split()[1])

    def close(self) -> None:
        """End it; returns when it holds no file or port any more."""
        try:
            os.kill(self._pid, signal.SIGKILL)
            os.read(self._answers, 1)  # ends when the other end does
        except ProcessLookupError:
            pass
        self._close()

    def _close(self) -> None:
        os.close(self._answers)
        os.close(self._life)


def _serve(endpoint: str, *, answer: int, life: int, timeout_s: float) -> NoReturn:
    for number in (*STOP_SIGNALS, signal.SIGHUP, STACKS_SIGNAL):  # ranks need it while they save
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGCHLD, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    try:
        host, port = parse_rendezvous_endpoint(endpoint, -1)
        store = TCPStore(host, port, None, True, timedelta(seconds=timeout_s), wait_for_workers=False)
    except Exception as error:
        os.write(answer, str(error).encode()[:4096])
        os._exit(1)
    os.write(answer, _READY + b" %d" % os.getpid())
    os.read(life, 1)
    del store
    os._exit(0)


class Departure:
    """Lets the host that serves the store leave last: the others still read from it that all are done."""

    store: Any = None
    """The client of this host's agent, once it has one."""

    def leave(self, host: int, *, hosts: int) -> None:
        """Say that this host is done; on host 0, wait for the others to say so."""
        if self.store is None or hosts == 1:
            return
        try:
            if host:
                self.store.add(_LEFT, 1)
                return
            limit = time.monotonic() + _LEAVE_S
            while self.store.add(_LEFT, 0) < hosts - 1 and time.monotonic() < limit:
                time.sleep(_POLL_S)
        except RuntimeError:  # it has gone, and nobody waits for anything any more
            return


class _ServedRendezvous(StaticTCPRendezvous):
    """torchelastic's static rendezvous as a client on every host."""

    departure: Departure

    def get_backend(self) -> str:
        return BACKEND

    def next_rendezvous(self) -> Any:
        if not self._store:
            self._store = TCPStore(self.master_addr, self.master_port, None, False, self.timeout)
            self.departure.store = self._store
        return super().next_rendezvous()


def _make(params: RendezvousParameters) -> _ServedRendezvous:
    host, port = parse_rendezvous_endpoint(params.endpoint, -1)
    timeout_s = int(params.config["timeout"])
    made = _ServedRendezvous(host, port, int(params.config["rank"]), params.max_nodes, params.run_id, timeout_s)
    made.departure = params.config["departure"]
    return made


def register() -> None:
    """Let torchelastic know the rendezvous; idempotent."""
    try:
        rendezvous_handler_registry.register(BACKEND, _make)
    except ValueError:  # it is registered, by an earlier call
        return
