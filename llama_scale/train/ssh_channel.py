"""The head's end of one host's channel: an ssh process whose standard input and output reach the host's guard."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from llama_scale.errors import LaunchError
from llama_scale.train.ssh_protocol import Order, heard

_TAIL_BYTES = 2000
_UNREACHABLE = 255
"""Status of ssh when it, and not the command on the host, failed."""


def ssh_command(host: str, words: Sequence[str], *, timeout_s: float, lease_s: float, port: int | None) -> list[str]:
    """Return the command that runs another one on a host.

    ssh asks for nothing, gives up in time, and keeps a silent connection for longer than the lease: whether a host is
    there is judged by its signs of life alone.
    """
    options = ("BatchMode=yes", f"ConnectTimeout={max(1, round(timeout_s))}", "ServerAliveInterval=5")
    alive = f"ServerAliveCountMax={round(lease_s / 5) + 2}"
    words_of_options = [word for option in (*options, alive) for word in ("-o", option)]
    place = ["-p", str(port)] if port else []
    # exec: no shell stays between sshd and the guard, to be killed in its place.
    return ["ssh", "-T", *words_of_options, *place, host, f"exec {shlex.join(words)}"]


class Channel:
    """Talk with the guard of one host.

    Args:
        host: Its name.
        command: The ssh command; it is started at once.

    Raises:
        LaunchError: ssh cannot be started.
    """

    def __init__(self, host: str, command: Sequence[str]) -> None:
        self.host = host
        self.hello: dict[str, Any] | None = None
        self.end: dict[str, Any] | None = None
        self.status: int | None = None
        """Exit status of ssh; None while it runs."""
        self.started = self.heard = time.monotonic()
        self._out = b""
        self._errors = b""
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ()),  # noqa: PLW1509 - one thread
            )
        except OSError as error:
            raise LaunchError(f"cannot start {command[0]}: {error.strerror}; install an ssh client") from error
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._input = self._process.stdin.fileno()
        self.output, self.errors = self._process.stdout.fileno(), self._process.stderr.fileno()
        for descriptor in (self._input, self.output, self.errors):
            os.set_blocking(descriptor, False)

    @property
    def said(self) -> str:
        """The last thing that ssh or the host's shell printed as an error."""
        lines = self._errors.decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    @property
    def unreachable(self) -> bool:
        """Whether ssh itself gave up."""
        return self.status == _UNREACHABLE

    def send(self, order: Order) -> None:
        """Send an order; one to a host that does not read is lost, as its lease will be."""
        try:
            os.write(self._input, order.line())
        except OSError:
            return

    def read(self, descriptor: int) -> bool:
        """Take what one of the two outputs holds; return False at its end."""
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if descriptor == self.errors:
            self._errors = (self._errors + data)[-_TAIL_BYTES:]
            return bool(data)
        *lines, self._out = (self._out + data).split(b"\n")
        for line in lines:
            message = heard(line)
            if message is None:
                self._errors = (self._errors + line + b"\n")[-_TAIL_BYTES:]
                continue
            self.heard = time.monotonic()
            if message["say"] == "hello":
                self.hello = message
            elif message["say"] == "end":
                self.end = message
        return bool(data)

    def poll(self) -> int | None:
        """Return ssh's exit status; None while it runs."""
        self.status = self._process.poll()
        return self.status

    def close(self) -> None:
        """Give up the connection; a guard that is there sees its end."""
        if self._process.poll() is None:
            self._process.kill()
        self.status = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                continue
