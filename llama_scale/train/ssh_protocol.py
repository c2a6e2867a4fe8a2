"""What the head of a run on several hosts and the guard of each host tell each other. No torch.

Over one channel a host (ssh's standard input and output) go lines of JSON. The head sends ``Order``s, the guard says
``hello``, ``alive`` and ``end``. Either side that hears nothing for the lease's length regards the other as gone.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llama_scale.train.failures import now_utc, write_json

BEAT_S = 2.0
"""Seconds between signs of life."""
Reason = Literal["", "stop", "end", "lease"]
"""Why a guard ended its agent: it did not; a stop was asked for; the head said so; the head had gone."""
SAVE_PART = 2 / 3
"""Part of the lease without a sign of life after which ranks are asked to save; at its end they are killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeJob:
    """What a host's guard is told on its command line.

    Args:
        run: The run folder, the same path on all hosts.
        attempt: Number of the attempt.
        node_rank: Number of this host.
        nnodes: Hosts of the run.
        nproc: Ranks of each host.
        lease_s: Seconds without a sign of the head after which all processes of this host have ended.
        grace_s: Seconds that ranks have to save and leave after a stop request.
        version: Version and digest of the package on the head: they must be the same here.
        port: Port of the rendezvous; None: one by run and attempt that is free on host 0.
    """

    run: str
    attempt: int
    node_rank: int
    nnodes: int
    nproc: int
    lease_s: float
    grace_s: float
    version: str
    port: int | None = None

    def encode(self) -> str:
        """Return one word of letters, digits, ``-`` and ``_``: it passes through every shell unharmed."""
        text = json.dumps(asdict(self)).encode("ascii")
        return base64.urlsafe_b64encode(text).decode("ascii").rstrip("=")

    @classmethod
    def decode(cls, word: str) -> NodeJob:
        """Undo ``encode``.

        Raises:
            ValueError: It is no such word.
            TypeError: It is one of another version.
        """
        return cls(**json.loads(base64.urlsafe_b64decode(word + "=" * (-len(word) % 4))))

    @property
    def attempt_dir(self) -> Path:
        """Folder of the attempt."""
        return Path(self.run) / "attempts" / f"{self.attempt:03d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the head sends.

    Args:
        do: start the agent; alive: a sign of life; stop: save and leave; end: kill everything; stacks: write down where
            all ranks are.
        endpoint: ``host:port`` of the rendezvous, for start.
        toward: Another host of the run, for start: the interface that leads to it carries gloo's traffic.
        variables: Environment of the agent beside this host's own, for start. In no file: they may hold secrets.
    """

    do: Literal["start", "alive", "stop", "end", "stacks"]
    endpoint: str = ""
    toward: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)

    def line(self) -> bytes:
        """Return it as one line."""
        return json.dumps(asdict(self)).encode("ascii") + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Order | None:
        """Read a line; None for one that is no order."""
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError):
            return None


def say(kind: Literal["hello", "alive", "end"], **values: Any) -> bytes:
    """Return a line of the guard."""
    return json.dumps({"say": kind, **values}).encode("ascii") + b"\n"


def heard(line: bytes) -> dict[str, Any] | None:
    """Read a line of the guard; None for what a host's shell may print around it."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) and "say" in values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """Hold ``attempts/NNN/node-NNNNN.json``: a guard that was started on a host, and how it ended.

    Args:
        node_rank: Number of the host.
        host: Its name.
        pid: The guard's process there.
        exit_code: Exit status of the agent, or minus the signal that ended it; None while it runs.
        reason: Why the guard ended it, if it did.
        ended_utc: When it ended.
    """

    node_rank: int
    host: str
    pid: int
    exit_code: int | None = None
    reason: Reason = ""
    ended_utc: str = ""

    @classmethod
    def begin(cls, node_rank: int) -> NodeRecord:
        """Return the record of a host whose guard is this process."""
        return cls(node_rank=node_rank, host=socket.gethostname(), pid=os.getpid())

    def end(self, exit_code: int, *, reason: Reason) -> NodeRecord:
        """Return the record of its end, now."""
        return replace(self, exit_code=exit_code, reason=reason, ended_utc=now_utc())

    def write(self, attempt_dir: Path) -> None:
        """Write it whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        write_json(attempt_dir / f"node-{self.node_rank:05d}.json", asdict(self))


def read_nodes(attempt_dir: Path) -> dict[int, NodeRecord]:
    """Return the records of an attempt by number of the host."""
    found = {}
    for path in attempt_dir.glob("node-*.json"):
        try:
            record = NodeRecord(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # replaced at this moment, on a network file system
            continue
        found[record.node_rank] = record
    return found


@dataclass(frozen=True, slots=True)
class Lease:
    """The head's sign of life in the run folder: whoever starts the run again waits for what an earlier head left.

    Ages are differences of times that the file's own server gave, so clocks of hosts need not agree.
    """

    path: Path

    def grant(self, lease_s: float) -> None:
        """Write it.

        Raises:
            OSError: It cannot be written.
        """
        self.path.write_text(f"{lease_s:g}\n", encoding="ascii")

    def renew(self) -> None:
        """Give it the present time.

        Raises:
            OSError: It cannot be written.
        """
        os.utime(self.path)

    def remaining_s(self, probe: Path) -> float:
        """Return the seconds until every host has seen it run out; 0 without a lease.

        Args:
            probe: File of the same file system that tells what time it is there.

        Raises:
            OSError: The probe cannot be written.
        """
        try:
            lease_s, renewed = float(self.path.read_text(encoding="ascii")), self.path.stat().st_mtime
        except (OSError, ValueError):
            return 0.0
        probe.touch()
        os.utime(probe)
        # A beat is on its way, a process takes a moment to end.
        return max(0.0, renewed + lease_s + 2 * BEAT_S - probe.stat().st_mtime)


def wait_for_earlier_hosts(attempt_dir: Path, *, poll_s: float = 0.25) -> None:
    """Wait until no process of an earlier attempt can live on any host.

    Args:
        attempt_dir: Folder of the attempt that is to begin.
        poll_s: Seconds between looks.

    Raises:
        OSError: The folder cannot be written.
    """
    probe = attempt_dir / ".now"
    try:
        for earlier in sorted(attempt_dir.parent.glob("[0-9][0-9][0-9]*")):
            while earlier.name < attempt_dir.name and any(n.exit_code is None for n in read_nodes(earlier).values()):
                if Lease(earlier / "lease").remaining_s(probe) <= 0:
                    break
                time.sleep(poll_s)
    finally:
        probe.unlink(missing_ok=True)
