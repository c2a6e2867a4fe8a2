from __future__ import annotations

import socket

import pytest

from llama_scale.errors import LaunchError
from llama_scale.train import ports


def test_port_is_free_and_no_connections_own() -> None:
    port = ports.free_port()
    assert port in ports.PORTS
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))


def test_taken_ports_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(ports, "PORTS", range(taken.getsockname()[1], taken.getsockname()[1] + 1))
        monkeypatch.setattr(ports, "_TRIES", 1)
        with pytest.raises(LaunchError, match="were tried and all are taken; free some"):
            ports.free_port()
