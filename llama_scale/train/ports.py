"""A port for the store of a job on this machine."""

from __future__ import annotations

import random
import socket

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
