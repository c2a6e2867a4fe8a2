"""DeepSpeed's hostfile: one host a line, ``NAME slots=N``; ``#`` begins a comment line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

HOST_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$"
_LINE = re.compile(r"(\S+)\s+slots=(\d{1,9})\s*(?:#.*)?")
_HOST = re.compile(HOST_PATTERN)


class HostfileError(Exception):
    """List everything that is wrong with a hostfile."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(faults))


@dataclass(frozen=True, slots=True)
class Host:
    """A line: a host and how many processes it takes."""

    name: str
    slots: int


def parse_hostfile(text: str) -> tuple[Host, ...]:
    """Return the hosts in the file's order; the first one holds rank 0.

    >>> parse_hostfile("# two hosts\\nnode1 slots=8\\nnode2 slots=8\\n")
    (Host(name='node1', slots=8), Host(name='node2', slots=8))

    Raises:
        HostfileError: A line is no entry, a host is named twice, or there is none.
    """
    hosts: dict[str, Host] = {}
    faults = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None or not _HOST.fullmatch(match[1]) or int(match[2]) == 0:
            faults.append(f"line {number}: {line[:60]!r} is not NAME slots=N")
        elif match[1] in hosts:
            faults.append(f"line {number}: {match[1]} is named twice")
        else:
            hosts[match[1]] = Host(match[1], int(match[2]))
    if not hosts and not faults:
        faults.append("it names no host")
    if faults:
        raise HostfileError(faults)
    return tuple(hosts.values())


def render_hostfile(names: Sequence[str], *, slots: int) -> str:
    """Return the text of a hostfile.

    >>> render_hostfile(["node1", "node2"], slots=4)
    'node1 slots=4\\nnode2 slots=4\\n'
    """
    return "".join(f"{name} slots={slots}\n" for name in names)
