"""Faults of test hosts: network cut or dropping, power cut, hang, full disk, skewed clock, taken port, ..."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.hosts import Host, Hosts, call, is_alive, write_sshd_config


@contextmanager
def cut(host: Host) -> Iterator[None]:
    """Pull the network cable inside the block."""
    call("ip", "link", "set", host.link, "down")
    try:
        yield
    finally:
        call("ip", "link", "set", host.link, "up")


@contextmanager
def drop(host: Host) -> Iterator[None]:
    """Lose all packets inside the block, while the link seems up: a dead switch."""
    call("bridge", "link", "set", "dev", host.link, "state", "0")
    try:
        yield
    finally:
        call("bridge", "link", "set", "dev", host.link, "state", "3")


def power_off(host: Host) -> None:
    """Cut the power: everything in the host ends, and no packet says so. ``Hosts.boot`` switches it on again."""
    assert host.pid is not None and host.process is not None
    call("ip", "link", "set", host.link, "down")
    os.kill(host.pid, signal.SIGKILL)
    host.process.wait()
    while is_alive(host.pid):
        time.sleep(0.02)
    host.pid = None
    call("ip", "link", "del", host.link, check=False)
    call("ip", "netns", "del", host.name, check=False)


@contextmanager
def hang(host: Host) -> Iterator[None]:
    """Freeze every process inside the block; the kernel still answers, as that of a host that swaps itself to death."""
    stopped: set[int] = set()
    while fresh := set(host.processes()) - stopped:  # twice: one may fork meanwhile
        for pid in fresh:
            _signal(pid, signal.SIGSTOP)
        stopped |= fresh
    try:
        yield
    finally:
        for pid in host.processes():
            _signal(pid, signal.SIGCONT)


@contextmanager
def clock_skew(hosts: Hosts, host: Host, seconds: int) -> Iterator[None]:
    """Let every program that is started over ssh inside the block see another time of day."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    extra = f"SetEnv LD_PRELOAD={library} FAKETIME={seconds:+d} DONT_FAKE_MONOTONIC=1\n"
    _reconfigure(hosts, host, extra)
    try:
        yield
    finally:
        _reconfigure(hosts, host, "")


def _reconfigure(hosts: Hosts, host: Host, extra: str) -> None:
    write_sshd_config(host, folder=hosts.folder, extra=extra)
    before = host.log.read_text().count("Server listening")
    call(*host.command(["pkill", "-HUP", "-o", "sshd"]))  # that host's process ids only
    deadline = time.monotonic() + 10
    while host.log.read_text().count("Server listening") == before:
        assert time.monotonic() < deadline, f"{host.name}: sshd does not read its configuration again"
        time.sleep(0.02)


@contextmanager
def replaced(host: Host, path: Path, by: Path) -> Iterator[None]:
    """Let a host see another file or folder in place of one, inside the block."""
    call(*host.command(["mount", "--bind", by, path]))
    try:
        yield
    finally:
        call(*host.command(["umount", "-l", path]))


@contextmanager
def read_only(host: Host, folder: Path) -> Iterator[None]:
    """Make a folder one that a host cannot write, inside the block."""
    call(*host.command(["mount", "--bind", folder, folder]))
    call(*host.command(["mount", "-o", "remount,ro,bind", folder]))
    try:
        yield
    finally:
        call(*host.command(["umount", "-l", folder]))


@contextmanager
def port_taken(host: Host, port: int) -> Iterator[None]:
    """Let another program of the host listen on a port inside the block."""
    code = f"import socket; s = socket.create_server(('', {port})); print('up', flush=True); s.accept()"
    with host.start(["python3", "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        try:
            yield
        finally:
            for pid in host.processes():
                if code in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                    _signal(pid, signal.SIGKILL)


def resize(hosts: Hosts, size: str) -> None:
    """Give the small disk another size (``8m``); less than what it holds fills it."""
    call("mount", "-o", f"remount,size={size}", hosts.small_disk)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
