"""Ports for the stores of jobs; ``python -m llama_scale.train.ports JOB`` prints one for other hosts to reach."""

from __future__ import annotations

import hashlib
import random
import socket
import sys
from collections.abc import Sequence

from llama_scale.errors import LaunchError

PORTS = range(10_000, 20_000)
"""Below the ports that Linux gives to connections (from 32768): one of those may be gone before the store listens."""

_TRIES = 100


def free_port() -> int:
    """Return a port of the loopback device that nothing listens on; another one each time.

    Raises:
        LaunchError: Many ports were tried and all are taken.
    """
    for port in random.SystemRandom().sample(PORTS, _TRIES):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise LaunchError(f"{_TRIES} ports between {PORTS[0]} and {PORTS[-1]} were tried and all are taken; free some")


_SHARED_PORTS = range(20_000, 30_000)
"""For a rendezvous that other hosts reach; apart from those above, so that runs on one host do not meet others'."""


def choose_port(seed: str, *, wanted: int | None = None) -> int:
    """Return a port of all this host's addresses that nothing listens on.

    Args:
        seed: Run folder and attempt: another run, or another attempt, gets another port.
        wanted: Take this one or none.

    Raises:
        LaunchError: It is taken, or many are.
    """
    first = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    tries = [wanted] if wanted else [_SHARED_PORTS[(first + trial) % len(_SHARED_PORTS)] for trial in range(_TRIES)]
    for port in tries:
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    if wanted:
        raise LaunchError(f"port {wanted} of the rendezvous is taken there; set launcher.master_port to a free one")
    raise LaunchError(f"{_TRIES} ports from {tries[0]} on were tried and all are taken; set launcher.master_port")


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
