"""What the agent and the processes over its ranks tell each other through files of the attempt's folder.

Launchers such as ``deepspeed`` and ``mpirun`` lose exit statuses, stop some ranks and not others, and cannot be asked
to save. The shared run folder reaches every host, needs no port, and outlives every process. No torch.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llama_scale.train.failures import now_utc, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class RankJob:
    """What a rank's process is told on its command line.

    Args:
        run: The run folder.
        attempt: Number of the attempt.
        environment: File of assignments, as a shell reads them; they win over the process's own.
        lease_s: The rank ends when the agent has not renewed its lease for this long.
    """

    run: str
    attempt: int
    environment: str
    lease_s: float = 20.0

    def encode(self) -> str:
        """Return one word of letters, digits, ``-`` and ``_``: it passes through every shell unharmed.

        >>> RankJob.decode(RankJob(run="it's $HOME", attempt=3, environment="e").encode()).run
        "it's $HOME"
        """
        text = json.dumps(asdict(self)).encode("ascii")
        return base64.urlsafe_b64encode(text).decode("ascii").rstrip("=")

    @classmethod
    def decode(cls, word: str) -> RankJob:
        """Undo ``encode``.

        Raises:
            ValueError: It is no such word.
        """
        return cls(**json.loads(base64.urlsafe_b64decode(word + "=" * (-len(word) % 4))))

    @property
    def attempt_dir(self) -> Path:
        """Folder of the attempt."""
        return Path(self.run) / "attempts" / f"{self.attempt:03d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRecord:
    """Hold ``attempts/NNN/rank-RRRRR.json``: a rank that was started, and how it ended.

    Args:
        rank: Global rank.
        host: Where it runs.
        pid: Process that watches over it there.
        exit_code: Exit status of the rank, or minus the signal that ended it; None while it runs.
        ended_utc: When it ended.
        by_agent: It was killed on the agent's behalf.
        out_of_memory: The kernel killed processes for want of memory meanwhile.
    """

    rank: int
    host: str
    pid: int
    exit_code: int | None = None
    ended_utc: str = ""
    by_agent: bool = False
    out_of_memory: bool = False

    @classmethod
    def begin(cls, rank: int) -> RankRecord:
        """Return the record of a rank whose watcher is this process."""
        return cls(rank=rank, host=socket.gethostname(), pid=os.getpid())

    def end(self, exit_code: int, *, by_agent: bool = False, out_of_memory: bool = False) -> RankRecord:
        """Return the record of its end, now."""
        return replace(self, exit_code=exit_code, ended_utc=now_utc(), by_agent=by_agent, out_of_memory=out_of_memory)

    def write(self, attempt_dir: Path) -> None:
        """Write it whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        write_json(attempt_dir / f"rank-{self.rank:05d}.json", asdict(self))


def read_records(attempt_dir: Path) -> dict[int, RankRecord]:
    """Return the records of an attempt by rank."""
    found = {}
    for path in attempt_dir.glob("rank-*.json"):
        try:
            record = RankRecord(**json.loads(path.read_text(encoding="utf-8")))
        except OSError:  # replaced at this moment, on a network file system
            continue
        found[record.rank] = record
    return found


@dataclass(frozen=True, slots=True)
class Control:
    """Requests of the agent to the processes over its ranks: empty files, which a full disk does not prevent."""

    attempt_dir: Path

    @property
    def lease(self) -> Path:
        """File whose time changes for as long as the agent lives."""
        return self.attempt_dir / "lease"

    @property
    def stop(self) -> Path:
        """While it exists, ranks save and leave."""
        return self.attempt_dir / "stop"

    @property
    def end(self) -> Path:
        """While it exists, ranks are killed."""
        return self.attempt_dir / "end"

    @property
    def lock(self) -> Path:
        """File that every process over a rank holds a shared flock on; that of the run, whatever the attempt."""
        return self.attempt_dir.parent / "ranks.lock"

    def begin(self, *, patience_s: float = 0.0) -> None:
        """Remove what an earlier try left and grant the first lease.

        Args:
            patience_s: How long to wait for the end of ranks of an earlier start, whose lease runs out.

        Raises:
            BlockingIOError: They still live.
            OSError: The folder cannot be written.
        """
        self.attempt_dir.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + patience_s
        while True:
            try:
                with self.lock.open("ab") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given up at once: ranks are to have it
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        for pattern in ("error-rank-*.json", "rank-*.json", "verdict*.json", "stop", "end"):
            for old in self.attempt_dir.glob(pattern):
                old.unlink(missing_ok=True)
        self.lease.touch()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the ranks' lock inside the block.

        Raises:
            OSError: It cannot be had.
        """
        with self.lock.open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield


class LeaseWatch:
    """Tell whether the agent still renews its lease. Only changes count, so clocks of hosts need not agree."""

    def __init__(self, control: Control, *, lease_s: float) -> None:
        self._path = control.lease
        self._lease_s = lease_s
        self._seen: int | None = None
        self._changed = time.monotonic()

    def expired(self) -> bool:
        """Return whether it has not been renewed for too long; a file that cannot be seen is not renewed."""
        try:
            stamp = self._path.stat().st_mtime_ns
        except OSError:
            stamp = None
        now = time.monotonic()
        if stamp is not None and stamp != self._seen:
            self._seen, self._changed = stamp, now
        return now - self._changed > self._lease_s


def parse_environment(text: str) -> dict[str, str]:
    """Return the assignments of a file that ``shlex.quote`` wrote, line by line.

    >>> parse_environment("A=1\\nB='it is'\\n")
    {'A': '1', 'B': 'it is'}
    """
    import shlex

    return dict(word.split("=", 1) for word in shlex.split(text))


def rank_environment(own: Mapping[str, str], assignments: Mapping[str, str], *, cores: int) -> dict[str, str]:
    """Return the environment of a rank's process.

    Args:
        own: What the launcher gave it; holds RANK, WORLD_SIZE, LOCAL_RANK and the rendezvous.
        assignments: The run's own variables.
        cores: Cores that it may use, shared by the host's ranks unless OMP_NUM_THREADS is given.
    """
    values = {**own, **assignments}
    local = own.get("LOCAL_WORLD_SIZE") or own.get("LOCAL_SIZE") or "1"
    values["LOCAL_WORLD_SIZE"] = local
    values.setdefault("OMP_NUM_THREADS", str(max(1, cores // int(local))))
    values.pop("PYTHONDONTWRITEBYTECODE", None)  # without .pyc files every rank would compile what it imports
    return values


def out_of_memory_kills() -> int:
    """Return how many processes of this control group the kernel has killed for want of memory so far."""
    for line in _lines(Path("/sys/fs/cgroup/memory.events")):
        key, _, value = line.partition(" ")
        if key == "oom_kill":
            return int(value)
    return 0


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text(encoding="ascii").splitlines()
    except OSError:  # no control groups v2: then nobody can tell
        return
