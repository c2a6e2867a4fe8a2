"""What is asked of hosts, what they answer, and what follows."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What one host's probe is asked.

    Args:
        runs_dir: Folder that all hosts share; empty: not looked at.
        token: Random text of this examination: names the files that are written into ``runs_dir``.
        files: Paths of data whose size and digest are told.
        toward: Another host: the interface that leads to it is told.
        first: Host of the rendezvous, whose address is told.
        port: Port that must be free there; 0 on other hosts.
        device: ``cuda`` or ``cpu``.
    """

    runs_dir: str = ""
    token: str = ""
    files: tuple[str, ...] = ()
    toward: str = ""
    first: str = ""
    port: int = 0
    device: str = "cpu"

    def to_dict(self) -> dict[str, Any]:
        """Return what the probe takes."""
        return asdict(self) | {"files": list(self.files)}

    def encode(self) -> str:
        """Return one word that passes through every shell unharmed."""
        return base64.urlsafe_b64encode(json.dumps(self.to_dict()).encode("ascii")).decode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one host answered.

    Args:
        host: Its name.
        facts: What its probe found (``probe.gather``); None if it said nothing.
        skew_s: Its clock minus this machine's.
        uncertainty_s: Half the time that the exchange took: the skew is known to be within it.
        fault: Why it said nothing.
        remedy: What to do about that.
    """

    host: str
    facts: Mapping[str, Any] | None = None
    skew_s: float = 0.0
    uncertainty_s: float = 0.0
    fault: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Say how one check of one host, or of a pair of hosts, came out.

    Args:
        check: Name of the check, for machines.
        host: The host; two names joined by `` - `` for a pair; empty: all hosts.
        level: ok, warning or failed.
        message: What was found.
        remedy: What to do; empty where nothing is to be done.
    """

    check: str
    host: str
    level: Level
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        where = f"{self.host}: " if self.host else ""
        return f"{where}{self.message}" + (f"; {self.remedy}" if self.remedy else "")

    def to_dict(self) -> dict[str, str]:
        """Return what ``doctor --json`` prints."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a run needs of its hosts, from the spec and the plan.

    Args:
        hosts: Names, in order of ranks; empty: this machine alone.
        devices: Devices, or CPU processes, of each host.
        device: ``cuda`` or ``cpu``.
        ssh_port: Port of sshd; None leaves it to ssh.
        port: Port of the rendezvous if the spec names one, else 0.
        files: Data that every host reads.
        disk_bytes: Room for the checkpoints that are kept and the one being written.
        memory_bytes: Host memory of one host's processes; 0 if not planned.
        world: Ranks of the run.
        bases: Hosts read weights from ``.bases`` of the runs' folder.
        notes: What a reader must know of the examination.
    """

    hosts: tuple[str, ...] = ()
    devices: int = 1
    device: str = "cpu"
    ssh_port: int | None = None
    port: int = 0
    files: tuple[str, ...] = ()
    disk_bytes: float = 0.0
    memory_bytes: float = 0.0
    world: int = 1
    bases: bool = False
    notes: tuple[str, ...] = ()
