"""Ports for the stores of jobs; ``python -m llama_scale.train.ports JOB`` prints one for other hosts to reach."""

from __future__ import annotations

import hashlib
import random
import socket
import sys
from collections.abc import Iterable, Sequence

from llama_scale.errors import LaunchError

PORTS = range(10_000, 20_000)
"""Below the ports that Linux gives to connections (from 32768): one of those may be gone before the store listens."""

_TRIES = 100


def free_port() -> int:
    """Return a port of the loopback device that nothing listens on; another one each time.

    Raises:
        LaunchError: Many ports were tried and all are taken.
    """
    port = _first_free(random.SystemRandom().sample(PORTS, _TRIES), address="127.0.0.1")
    if port is None:
        raise LaunchError(f"{_TRIES} ports between {PORTS[0]} and {PORTS[-1]} were tried and all are taken; free some")
    return port


def rank_variables(rank: int, *, world: int, port: int) -> dict[str, str]:
    """Return what tells a process which rank it is of those on this machine alone, and where their store is."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


_SHARED_PORTS = range(20_000, 30_000)
"""For a rendezvous that other hosts reach; apart from those above, so that runs on one host do not meet others'."""


def job_ports(seed: str) -> list[int]:
    """Return the ports for a job's rendezvous, in the order in which they are tried.

    Args:
        seed: Run folder and attempt: another run, or another attempt, gets others.
    """
    first = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    return [_SHARED_PORTS[(first + trial) % len(_SHARED_PORTS)] for trial in range(_TRIES)]


def choose_port(seed: str, *, wanted: int | None = None, address: str = "") -> int:
    """Return a port of this host that nothing listens on.

    Args:
        seed: See ``job_ports``.
        wanted: Take this one or none.
        address: Of this address; empty: of all that the host has.

    Raises:
        LaunchError: It is taken, or many are.
    """
    tries = [wanted] if wanted else job_ports(seed)
    port = _first_free(tries, address=address)
    if port is not None:
        return port
    if wanted:
        raise LaunchError(f"port {wanted} of the rendezvous is taken there; set launcher.master_port to a free one")
    raise LaunchError(f"{_TRIES} ports from {tries[0]} on were tried and all are taken; set launcher.master_port")


def _first_free(ports: Iterable[int], *, address: str) -> int | None:
    for port in ports:
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Print the port of a job."""
    (seed,) = sys.argv[1:] if argv is None else argv
    try:
        sys.stdout.write(f"{choose_port(seed)}\n")
    except LaunchError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
