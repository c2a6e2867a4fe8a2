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


@pytest.mark.parametrize("address", ["", "127.0.0.1"])
def test_ports_of_jobs_differ_by_attempt_and_taken_ones_are_left_out(address: str) -> None:
    first = ports.choose_port("run#0", address=address)
    assert first == ports.choose_port("run#0", address=address) != ports.choose_port("run#1", address=address)
    assert first in ports.job_ports("run#0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        assert ports.choose_port("run#0", address=address) != first
        with pytest.raises(LaunchError, match=f"port {first} of the rendezvous is taken there; set launcher"):
            ports.choose_port("run#0", wanted=first, address=address)


def test_no_free_port_for_a_job_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "_SHARED_PORTS", range(port, port + 1))
        with pytest.raises(LaunchError, match=r"100 ports .* are taken; set launcher.master_port"):
            ports.choose_port("x")
